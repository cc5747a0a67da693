"""The server: selector, coordinator and aggregator, and the HTTPS adapter that carries their messages."""
