"""``python -m ovms_supervisor.cli`` is ``ovm``."""

from ovms_supervisor.cli.main import main

main()
