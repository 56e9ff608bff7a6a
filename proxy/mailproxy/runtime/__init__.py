"""Where conversations meet sockets: the only package that does input and output on mail connections."""
