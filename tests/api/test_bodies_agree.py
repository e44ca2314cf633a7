"""Whatever a body is: the document allows it exactly when the daemon's decoder does."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spec.api import (
    InjectRequest,
    InstanceRequest,
    PruneRequest,
    PullRequest,
    PushRequest,
    SnapshotRequest,
    StartRequest,
    StopRequest,
    WarmRequest,
)
from tests.api.document import violations

_NAMES = ["instance_id", "manifest", "overrides", "tag", "timeout_s", "content", "mmio", "device", "offset", "read"]
_NAMES += ["text", "runtime", "memory", "cpus", "kernel_args", "name", "disk", "boot", "other"]
_WORDS = ["", "qemu", "generic", "auto", "cold", "ephemeral", "512M", "web", "Web", "a b", "x" * 65, "x" * 513]

_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 300),
    st.sampled_from([4096, 2 << 20, (2 << 20) + 1, 0.5, 3600.5, -0.5]),
    st.sampled_from(_WORDS),
)
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3)),
    max_leaves=6,
)
_overrides = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("runtime", "memory", "cpus", "kernel_args", "name", "disk", "boot"), _scalars)
)
_access = st.fixed_dictionaries(
    {"device": st.one_of(st.just("mmio0"), _values)},
    optional={"offset": _scalars, "read": _scalars, "text": _scalars, "other": _scalars},
)
_pull_policies = st.one_of(st.sampled_from(["missing", "always", "never"]), _scalars)
_BODIES: dict[type[msgspec.Struct], st.SearchStrategy[Any]] = {
    StartRequest: st.fixed_dictionaries(
        {"manifest": st.one_of(st.just("demo:1"), _values)},
        optional={"overrides": st.one_of(_overrides, _values), "pull": _pull_policies},
    ),
    PushRequest: st.fixed_dictionaries(
        {"reference": st.one_of(st.just("example.com/app:1"), _values)},
        optional={"source": st.one_of(st.just("app:1"), _values), "wait": _scalars, "other": _scalars},
    ),
    PullRequest: st.fixed_dictionaries(
        {"reference": st.one_of(st.just("example.com/app:1"), _values)},
        optional={"policy": _pull_policies, "wait": _scalars, "other": _scalars},
    ),
    StopRequest: st.fixed_dictionaries(
        {"instance_id": st.one_of(st.just("web"), _values)}, optional={"timeout_s": _values}
    ),
    InstanceRequest: _values,
    SnapshotRequest: st.fixed_dictionaries({"instance_id": st.just("web")}, optional={"tag": _values}),
    PruneRequest: st.fixed_dictionaries({}, optional={"all": _scalars, "dry_run": _scalars, "other": _scalars}),
    WarmRequest: st.fixed_dictionaries(
        {"manifest": st.just("demo:1"), "count": _scalars}, optional={"min": _scalars, "max": _scalars}
    ),
    InjectRequest: st.fixed_dictionaries(
        {"instance_id": st.just("web")},
        optional={
            "content": st.one_of(
                st.fixed_dictionaries({"mmio": st.one_of(_access, st.lists(_access, max_size=2), _values)}), _values
            )
        },
    ),
}


@pytest.mark.parametrize("kind", list(_BODIES), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_document_and_decoder_agree(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    body = data.draw(st.one_of(_BODIES[kind], _values))
    try:
        msgspec.json.decode(json.dumps(body), type=kind)
        accepted = True
    except msgspec.ValidationError:
        accepted = False
    found = violations({"$ref": f"#/components/schemas/{kind.__name__}"}, body)
    assert accepted == (not found), found
