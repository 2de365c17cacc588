//! On its own because it changes the process it runs in.

use rustix::process::{Resource, getrlimit};

#[test]
fn a_hardened_process_dumps_no_core_and_cannot_be_traced() {
    assert_ne!(
        rustix::process::dumpable_behavior().unwrap(),
        rustix::process::DumpableBehavior::NotDumpable
    );
    wavry_credentials::process::harden().unwrap();
    let limit = getrlimit(Resource::Core);
    assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    assert_eq!(
        rustix::process::dumpable_behavior().unwrap(),
        rustix::process::DumpableBehavior::NotDumpable
    );
    // Once more does no harm, though the limit cannot be raised again.
    wavry_credentials::process::harden().unwrap();
}
