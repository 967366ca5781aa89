"""Whether a service slows down as its store grows: `make growth`."""
