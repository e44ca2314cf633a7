"""The ``ovm`` command: a thin layer over the local store and :class:`ovms_supervisor.client.Client`."""
