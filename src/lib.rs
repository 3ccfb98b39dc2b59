//! Mustela: streaming online learning as a service.
//!
//! A live model is a deterministic fold over a durable log; everything here follows from that. The rooms stand on floors, and
//! a room imports only from its own floor or from below; ARCHITECTURE.md draws the house.

// Floor 0: shared ground.
pub mod allocator;
pub mod config;
pub mod disk;
pub mod json;
pub mod ledger;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod shutdown;
pub mod trace;

// Floor 1: what is learned, and the seam that everything hangs on.
pub mod encoder;
pub mod fold;
pub mod network;
pub mod rows;

// Floor 2: what arrives, and the fold that trains networks.
pub mod ferret;
pub mod learner;
pub mod stream;

// Floor 3: live models.
pub mod model;

// Floor 4: what live models are used for.
pub mod method;

// Floor 5: the doors.
pub mod http;

// Floor 6: the commands.
pub mod cli;
