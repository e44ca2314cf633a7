from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovms_supervisor.config import Loaded, directories, document, host, load
from spec.errors import FileMissing, InvalidConfig, PermissionMissing
from spec.sizes import GIB, KIB, MIB


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "ovms.toml"


def _load(tmp_path: Path, **layers: object) -> Loaded:
    """With a file that is not the host's, and run and root directories of the test's own."""
    file = layers.get("file")
    if file is None:
        file = tmp_path / "empty.toml"
        file.touch()
    assert isinstance(file, Path)
    flags = layers.get("flags", {})
    environ = layers.get("environ", {})
    assert isinstance(flags, dict)
    assert isinstance(environ, dict)
    return load(flags, environ, file)


def test_every_key_has_a_value_and_an_origin(tmp_path: Path) -> None:
    loaded = _load(tmp_path)
    assert list(loaded.values) == list(loaded.origins) == list(document.all_keys())
    assert "runtimes.cloud-hypervisor.binary" in loaded.values
    assert all(origin.startswith("default") for origin in loaded.origins.values())


def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path, toml: Path) -> None:
    toml.write_text('cpus = 2\nmemory = "1G"\nlog_level = "debug"\n[runtimes.qemu]\nbinary = "/opt/qemu"\n')
    loaded = _load(tmp_path, file=toml, environ={"OVMS_CPUS": "3", "OVMS_MEMORY": "2G"}, flags={"cpus": "4"})
    settings = loaded.settings
    assert (settings.default_cpus, settings.default_memory_bytes, settings.log_level) == (4, 2 * GIB, "debug")
    assert settings.binaries == {"qemu": Path("/opt/qemu"), "cloud-hypervisor": None}
    assert loaded.origins["cpus"] == "flag --cpus"
    assert loaded.origins["memory"] == "environment OVMS_MEMORY"
    assert loaded.origins["log_level"] == f"file {toml}"
    assert loaded.origins["on_exit"] == "default"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("colour = 1", "colour"),
        ("[runtimes.qemu]\nbinry = '/x'", "runtimes.qemu.binry"),
        ("[runtimes.xen]\nbinary = '/x'", "runtimes.xen"),
        ("cpus = 0", "cpus"),
        ("cpus = '2'", "cpus"),
        ("mlock = 'sometimes'", "mlock"),
        ("memory = '12 potatoes'", "memory"),
        ("memory = 1", "memory"),
        ("image_budget = '120%'", "image_budget"),
        ("log_limit = '50%'", "log_limit"),
        ("warm = 'demo:warm'", "warm"),
        ("warm = ['demo:warm=4..2']", "warm"),
        ("warm = ['/a/path=4']", "warm"),
        ("warm = 4", "warm"),
        ("root = 'relative/path'", "root"),
        ("root = '~nobody-of-that-name/x'", "root"),
    ],
)
def test_a_file_that_can_not_be_meant_is_refused_with_key_and_file(
    tmp_path: Path, toml: Path, text: str, key: str
) -> None:
    toml.write_text(text)
    with pytest.raises(InvalidConfig) as caught:
        _load(tmp_path, file=toml)
    assert caught.value.fields["key"] == key
    assert str(toml) in caught.value.detail
    assert key in caught.value.detail


def test_a_choice_is_refused_with_the_choices_there_are(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="required or best-effort"):
        _load(tmp_path, environ={"OVMS_MLOCK": "maybe"})


def test_what_is_not_toml_is_refused_with_the_line(tmp_path: Path, toml: Path) -> None:
    toml.write_text("cpus = \n")
    with pytest.raises(InvalidConfig, match="line 1"):
        _load(tmp_path, file=toml)
    toml.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidConfig, match="not TOML"):
        _load(tmp_path, file=toml)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(FileMissing):
        load({}, {}, tmp_path / "no.toml")
    with pytest.raises(FileMissing):
        load({}, {"OVMS_CONFIG": str(tmp_path / "no.toml")})


def test_unknown_variables_are_told_not_refused(tmp_path: Path) -> None:
    loaded = _load(tmp_path, environ={"OVMS_SERVICE_HOST": "10.0.0.1", "OVMS_CONFIG": "", "OTHER": "1"})
    assert loaded.unknown_variables == ("OVMS_SERVICE_HOST",)


def test_an_empty_variable_is_unset(tmp_path: Path) -> None:
    assert _load(tmp_path, environ={"OVMS_CPUS": ""}).origins["cpus"] == "default"


def test_paths_of_flags_are_relative_to_the_present_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = _load(tmp_path, flags={"root": "a/../b", "run_dir": "r"}).settings
    assert settings.root == tmp_path / "b"
    assert settings.socket == tmp_path / "r" / "ovms.sock"


def test_a_socket_path_that_the_kernel_would_cut_is_refused(tmp_path: Path) -> None:
    fits = "/" + "s" * 106
    assert _load(tmp_path, flags={"socket": fits}).settings.socket == Path(fits)
    with pytest.raises(InvalidConfig, match="107 bytes"):
        _load(tmp_path, flags={"socket": fits + "s"})


def test_the_budget_may_be_a_share_of_memory(tmp_path: Path) -> None:
    total = host.memory_total_bytes()
    assert _load(tmp_path, environ={"OVMS_IMAGE_BUDGET": "25%"}).settings.image_budget_bytes == total // 4
    assert _load(tmp_path, environ={"OVMS_IMAGE_BUDGET": "64M"}).settings.image_budget_bytes == 64 * MIB


def test_lock_policy_follows_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert _load(tmp_path).settings.mlock == "required"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert _load(tmp_path).settings.mlock == "best-effort"


def test_directories_of_an_ordinary_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with_runtime_dir = load({}, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert with_runtime_dir.settings.root == tmp_path / "data" / "ovms"
    assert with_runtime_dir.settings.run_dir == tmp_path / "ovms"
    assert with_runtime_dir.file == tmp_path / "config" / "ovms" / "ovms.toml"
    without = load({}, {})
    assert without.settings.run_dir == Path("/tmp/ovms-54321")
    assert "XDG_RUNTIME_DIR" in without.origins["run_dir"]


def test_images_go_to_the_run_dir_if_that_is_a_large_enough_tmpfs(tmp_path: Path, tmpfs_dir: Path) -> None:
    near = _load(tmp_path, flags={"run_dir": str(tmpfs_dir / "r"), "image_budget": "1M"})
    assert near.settings.image_dir == tmpfs_dir / "r" / "images"
    assert near.origins["image_dir"] == "default (run_dir is a tmpfs)"


def test_images_go_to_shared_memory_if_the_run_dir_is_on_a_disk(tmp_path: Path) -> None:
    if host.filesystem_of(tmp_path).is_tmpfs or not host.filesystem_of(Path("/dev/shm")).is_tmpfs:
        pytest.skip("needs a temporary directory on a disk and /dev/shm")
    first = _load(tmp_path, flags={"run_dir": str(tmp_path / "a")})
    second = _load(tmp_path, flags={"run_dir": str(tmp_path / "b")})
    assert first.settings.image_dir.parent == Path("/dev/shm")
    assert first.settings.image_dir != second.settings.image_dir
    assert first.origins["image_dir"] == "default (run_dir is not tmpfs)"
    assert not first.settings.image_dir.exists()


def test_a_directory_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tmp_path / "ours"
    directories.secure_directory(ours)
    assert ours.stat().st_mode & 0o777 == 0o700
    directories.secure_directory(ours, 0o711)  # opened for a group of the socket
    assert ours.stat().st_mode & 0o777 == 0o711
    ours.chmod(0o770)
    with pytest.raises(PermissionMissing, match="0770"):
        directories.check_ours(ours)
    link = tmp_path / "link"
    link.symlink_to(ours)
    with pytest.raises(PermissionMissing, match="not a directory"):
        directories.check_ours(link)
    ours.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(PermissionMissing, match="belongs to user"):
        directories.check_ours(ours)
    directories.check_ours(tmp_path / "missing")


def test_filesystems_are_told_apart(tmpfs_dir: Path) -> None:
    found = host.filesystem_of(tmpfs_dir / "not" / "there" / "yet")
    assert found.is_tmpfs
    assert found.size_bytes >= found.free_bytes > 0
    assert host.filesystem_of(Path("/proc")).kind == "proc"


_TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)


@given(key=st.sampled_from(list(document.all_keys())), text=_TEXT)
def test_any_text_for_any_key_is_taken_or_refused_with_its_variable(
    tmp_path_factory: pytest.TempPathFactory, key: str, text: str
) -> None:
    file = tmp_path_factory.getbasetemp() / "none.toml"
    file.touch()
    variable = document.variable_of(key)
    try:
        loaded, refused = load({}, {variable: text}, file), None
    except InvalidConfig as error:
        loaded, refused = None, error
    if refused is not None:
        assert variable in refused.detail
        assert refused.fields["key"] == key
    elif loaded is not None and text:
        assert loaded.origins[key] == f"environment {variable}"


@given(st.integers(min_value=64 * KIB, max_value=1 << 50))
def test_a_size_in_bytes_is_itself(tmp_path_factory: pytest.TempPathFactory, size: int) -> None:
    file = tmp_path_factory.getbasetemp() / "size.toml"
    file.write_text(f"log_limit = {size}\n")
    assert load({}, {}, file).settings.log_limit_bytes == size


def test_what_is_kept_warm(tmp_path: Path, toml: Path) -> None:
    toml.write_text("warm = ['demo:warm=16', 'registry.example.com/web=2..64']")
    loaded = _load(tmp_path, file=toml)
    assert [(each.reference, each.least, each.most) for each in loaded.settings.warm] == [
        ("demo:warm", 16, 16),
        ("registry.example.com/web:latest", 2, 64),
    ]
    assert loaded.values["warm"] == ["demo:warm=16", "registry.example.com/web:latest=2..64"]
    by_variable = _load(tmp_path, environ={"OVMS_WARM": "demo:warm=1, demo:cold=0..3"}).settings.warm
    assert [str(each) for each in by_variable] == ["demo:warm=1", "demo:cold=0..3"]
    assert _load(tmp_path).settings.warm == ()
