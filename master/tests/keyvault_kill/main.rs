//! A KeyVault that is killed while it works, at [`moments`] that fall anywhere and at every system call
//! ([`calls`]) that writes, syncs, renames or removes. On its own because it starts itself as the KeyVault
//! that is to be killed.

#[cfg(target_os = "linux")]
mod calls;
mod moments;
#[cfg(target_os = "linux")]
mod strace;
mod vault;
