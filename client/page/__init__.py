"""The hospital's own small web page: what runs here, what left, how much, and a button that stops it.

It shows this hospital's events and its audit log and nothing of others; nothing of it leaves. The button does what
Ctrl-C does once: the order in hand is finished, then the agent ends.
"""

from fedpath.client.page.page import Page

__all__ = ["Page"]
