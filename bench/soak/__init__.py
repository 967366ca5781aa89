"""Whether anything is lost while things break: `make soak`."""
