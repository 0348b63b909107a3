"""One file per format of log: each turns lines into facts (`FACTS`) or reads a format of its own (`sniff`, `read`)."""
