//! Sockets, acceptor, signals, start and stop.
