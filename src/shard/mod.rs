//! One executor: executes requests, knows who waits for which block, speaks to the mesh.

pub mod mesh;
