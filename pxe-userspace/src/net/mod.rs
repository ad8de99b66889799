//! net
pub mod packet;
pub mod ra;
