//! A machine's SMBIOS table: firmware has faults.

use pxe_contract::facts::{Facts, LIST_MAX};
use pxe_init::facts::smbios;

pub(crate) fn run(bytes: &[u8]) {
    smbios::version(bytes);
    for version in [(2, 4), (3, 0)] {
        let mut facts = Facts::default();
        smbios::read(bytes, version, &mut facts);
        let modules = &facts.memory.modules;
        assert!(modules.len() * 4 <= bytes.len(), "more than there is room for");
        assert!(modules.iter().all(|module| module.size > 0), "an empty slot");
        facts.bound();
        assert!(facts.memory.modules.len() <= LIST_MAX);
    }
}
