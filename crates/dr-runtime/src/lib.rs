//! Saved networks, executed: the graph that describes them, the file that holds them, and the engines that run them.

pub mod graph;
