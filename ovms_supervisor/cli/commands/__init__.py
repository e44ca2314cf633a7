"""One module per topic; a module is imported only when its command is called (see ``cli.catalogue``)."""
