"""Language models as readers, judges and writers: in this process, or behind a server."""
