"""What the two roles' web pages share: who may see them, files, live data, the log.

Nothing here opens a socket: `guard` is a filter in plain ASGI, `routes` are what both pages answer alike, and whoever
serves a page (`fedpath.cli.page`) brings the server. The pages themselves are `fedpath.server.page` and
`fedpath.client.page`.
"""
