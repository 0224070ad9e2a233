"""Keys of federation.toml whose meaning is laid down and whose code is not there yet: refused, not passed over."""

from fedpath.core.config import FederationConfig
from fedpath.core.errors import ConfigError
from fedpath.server.aggregation import check_installed


def check_available(config: FederationConfig) -> None:
    """Check that a run asks for nothing that this version cannot do.

    Raises:
        ConfigError: naming the key.
    """
    local, aggregation, exchange = config.local, config.aggregation, config.exchange
    check_installed(aggregation)
    wanted = {
        f"local.method = '{local.method}'": local.method != "plain",
        "local.personal": bool(local.personal),
        "local.steps": local.steps is not None,
        f"exchange.encoding = '{exchange.encoding}'": exchange.encoding != "float32",
        "exchange.changes_only": exchange.changes_only,
    }
    for key, asked in wanted.items():
        if asked:
            raise ConfigError(f"{key} is not available in this version of fedpath", remedy="take the key out")
