"""Messages that must arrive: sent to every member of a route, kept while one cannot take them."""
