"""Consoles of guests: what they print, kept in bounded files that outlive the daemon, and read by cursors.

The VMM appends raw bytes to ``console.log`` itself, so a guest never waits for the daemon and nothing is lost while
the daemon is down. The daemon follows the file, numbers and stamps the lines in ``console.index``, and gives the disk
space of the oldest lines back by punching holes: offsets and line numbers never change, so a reader is no more than
a number. Live reading is replay that waits.
"""
