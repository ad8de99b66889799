//! Allows aya to copy the map structs to and from the kernel. The crate's only unsafe code.

use crate::Mac;
use crate::map::{Chunk, Lease, Session, SessionKey, SumPage};

// SAFETY: `repr(C)` over integers, every bit pattern is a value, and `map` asserts that there is
// no padding.
unsafe impl aya::Pod for SessionKey {}
// SAFETY: as above.
unsafe impl aya::Pod for Session {}
// SAFETY: as above.
unsafe impl aya::Pod for Chunk {}
// SAFETY: as above.
unsafe impl aya::Pod for SumPage {}
// SAFETY: as above, and the Mac is six bytes.
unsafe impl aya::Pod for Lease {}
// SAFETY: as above.
unsafe impl aya::Pod for Mac {}
