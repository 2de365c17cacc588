//! A real master on loopback, with nodes that join it and clients that misbehave.

mod joining;
mod refusals;
mod registry;
mod wire;
mod world;
