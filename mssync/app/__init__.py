"""The server of `mssync serve`: live sessions over WebSockets, and the page that plays them."""
