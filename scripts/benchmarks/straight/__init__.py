"""The baselines of a start: what a person would write who needs one machine now, and no supervisor.

Nothing of ours is used here, so that a row compares our way with the plain one: blocking sockets, a look at the socket
every 0.3 ms until it is there, no journal, no proof, no log, no API.
"""
