"""The conversations in each mail protocol, with clients and with upstreams.  Nothing here does I/O."""
