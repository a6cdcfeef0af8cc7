"""Payment gateways: how money from outside reaches a wallet."""
