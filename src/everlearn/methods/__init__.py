"""One file a method, and the hooks that they share."""
