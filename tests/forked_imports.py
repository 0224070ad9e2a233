"""What a process of a federation imports, for those that are forked off one that has done so (`forked`)."""

import gc

import fedpath.cli.main
import fedpath.client.agent.join
import fedpath.server.start  # noqa: F401

gc.freeze()
