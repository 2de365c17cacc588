//! A network between real UDP sockets, in one thread: links that delay, lose, reorder and slow down what is
//! sent over them, routers that translate addresses, and hosts that nothing reaches any more.
//!
//! A [`Shaper`] gives each host an address of its own, under which the others find it. What a host sends there
//! comes to the shaper, which knows the sender by its real address, treats the packet as the [`Link`] between
//! the two says, and sends it on from the sender's address: so nobody sees that anything is between, and programs
//! that know nothing of it – nodes of a mesh, real processes – are tested as they are.
//!
//! ```no_run
//! # async fn example(socket: std::net::UdpSocket, other: std::net::UdpSocket) -> std::io::Result<()> {
//! use std::time::Duration;
//! use wavry_loadtest::shaper::{Link, Nat, Shaper};
//!
//! let network = Shaper::start(7)?;
//! let here = network.host()?;
//! let there = network.host_behind(Nat::usual())?;
//! network.attach(here, socket.local_addr()?);
//! network.attach(there, other.local_addr()?);
//! network.both(here, there, Link::delayed(Duration::from_millis(20)));
//! // What `other` sends to this address comes to `socket` 20 ms later.
//! other.send_to(b"hello", here.address())?;
//! # Ok(())
//! # }
//! ```
//!
//! What happens to a packet follows from the seed, the packets before it on the same way and the time, and is
//! decided without sockets and clocks (`link`, `nat`, `network`); `driver` does it. What is dropped is
//! counted by reason. A packet comes out within fractions of a millisecond of its time where the host is not
//! busy: how late they were, [`Shaper::lateness`] says.

mod driver;
mod link;
mod nat;
mod network;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

pub use self::{
    driver::Lateness,
    link::{Link, Loss},
    nat::{Behaviour, Nat},
    network::Tally,
};
use self::{
    driver::{Ask, Driver},
    network::Number,
};

/// Addresses that a translator has: more than a node has remote ones, which are those of its paths.
const PORTS: usize = 16;

/// Why a packet does not come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dropped {
    /// Nothing comes through.
    Blackhole,
    /// It is larger than what the link carries.
    TooLarge,
    /// Too many wait for a link with a rate.
    QueueFull,
    /// It was lost on its way.
    Lost,
    /// A translator has no address left for it.
    NoPort,
    /// A translator has no mapping at this address.
    NoMapping,
    /// A translator lets nothing in from there.
    Filtered,
    /// The host has no socket yet.
    NobodyThere,
    /// It came from an address that is no host's.
    Stranger,
    /// The shaper carries as much as it can.
    Full,
    /// The kernel did not take it.
    SendFailed,
}

/// A host in a shaper's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Host {
    number: Number,
    address: SocketAddr,
}

impl Host {
    /// Where others find it. Behind a translator, the first address that it gives: until the host has sent
    /// something, nothing comes in there.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Something that changes in the network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// What goes from the first to the second is treated so.
    Link(Host, Host, Link),
    /// The host's translator forgets all mappings.
    Rebind(Host),
}

/// The network, until it is dropped. See the [module](self).
pub struct Shaper {
    asks: mpsc::SyncSender<Ask>,
    thread: Option<JoinHandle<()>>,
}

impl Shaper {
    /// An empty network, in a thread of its own. The same seed treats the same packets the same.
    pub fn start(seed: u64) -> io::Result<Self> {
        let (asks, asked) = mpsc::sync_channel(driver::ASKS);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let thread = std::thread::Builder::new()
            .name("shaper".to_owned())
            .spawn(move || runtime.block_on(Driver::new(seed).run(asked)))?;
        Ok(Self {
            asks,
            thread: Some(thread),
        })
    }

    /// One more host on the open network.
    pub fn host(&self) -> io::Result<Host> {
        self.add(1, None)
    }

    /// One more host, behind a translator of its own.
    pub fn host_behind(&self, nat: Nat) -> io::Result<Host> {
        self.add(PORTS, Some(nat))
    }

    /// The host's socket has this address from now on. Before it has one, nothing comes to it, and nothing is
    /// taken from it.
    pub fn attach(&self, host: Host, socket: SocketAddr) {
        self.ask(|done| Ask::Attach(host.number, socket, done));
    }

    /// What goes from one to the other is treated so from now on.
    pub fn link(&self, from: Host, to: Host, link: Link) {
        self.change(Change::Link(from, to, link));
    }

    /// What goes between the two is treated so from now on.
    pub fn both(&self, one: Host, other: Host, link: Link) {
        self.link(one, other, link);
        self.link(other, one, link);
    }

    /// Changes something; it has changed when this returns.
    pub fn change(&self, change: Change) {
        self.schedule([(Duration::ZERO, change)]);
    }

    /// Changes things later: each so long from now.
    pub fn schedule(&self, changes: impl IntoIterator<Item = (Duration, Change)>) {
        let changes = changes.into_iter().collect();
        self.ask(|done| Ask::Change(changes, done));
    }

    /// What became of packets from one to the other.
    pub fn tally(&self, from: Host, to: Host) -> Tally {
        self.ask(|told| Ask::Tally((from.number, to.number), told))
    }

    /// What became of packets that no host sent.
    pub fn strangers(&self) -> Tally {
        self.ask(Ask::Strangers)
    }

    /// How late packets came out.
    pub fn lateness(&self) -> Lateness {
        self.ask(Ask::Lateness)
    }

    fn add(&self, addresses: usize, nat: Option<Nat>) -> io::Result<Host> {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let sockets = (0..addresses)
            .map(|_| wavry_transport::socket::bind(at))
            .collect::<io::Result<Vec<_>>>()?;
        let (number, address) = self.ask(|told| Ask::Host(sockets, nat, told))?;
        Ok(Host { number, address })
    }

    /// Waits for the answer, which the driver gives at once.
    fn ask<T>(&self, ask: impl FnOnce(mpsc::SyncSender<T>) -> Ask) -> T {
        let (told, answer) = mpsc::sync_channel(1);
        let asked = self.asks.send(ask(told));
        assert!(asked.is_ok(), "the driver runs until this is dropped");
        answer.recv().expect("the driver answers")
    }
}

impl Drop for Shaper {
    fn drop(&mut self) {
        let _ = self.asks.send(Ask::Stop);
        if let Some(thread) = self.thread.take() {
            // If it panicked, whoever asked it something has, too.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Shaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shaper").finish_non_exhaustive()
    }
}

/// Numbers that a seed determines: SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Others, for each `number`.
    fn branch(&self, number: u64) -> Self {
        let mut mixed = Self(self.0 ^ Self(number).next());
        Self(mixed.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to, but not including, 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests;
