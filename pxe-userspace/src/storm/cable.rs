//! A cable into a bridge of this host: a veth pair, one end a port of the bridge, the other in a
//! network namespace of its own.
//!
//! That namespace has no name and lives as long as the socket in it. When the simulator ends, however it ends, the
//! kernel removes the namespace, and with it both ends of the cable; [`Cable`] only does that sooner. And nothing
//! else on the host (NetworkManager, DHCP clients, IPv6) touches the machines' end.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::mpsc;

use futures_util::TryStreamExt as _;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{Handle, LinkUnspec, LinkVeth};

use super::StormError;
use super::wire::{self, Wire};

/// The end in the bridge. Dropping it pulls the cable.
pub(super) struct Cable {
    pub(super) port: String,
}

impl Drop for Cable {
    fn drop(&mut self) {
        // If this fails, the kernel removes it a little later.
        let _ = with_netlink(async |netlink| remove(&netlink, &self.port).await);
    }
}

/// Plugs a cable into `bridge`. Returns the bridge's new port, and the other end.
pub(super) fn plug(bridge: &str) -> Result<(Cable, Wire), StormError> {
    let id = std::process::id();
    let (port, end) = (format!("storm{id}"), format!("storm{id}e"));
    let (namespace, namespaces) = mpsc::channel();
    let (moved, arrivals) = mpsc::channel::<()>();
    let (name, other) = (end.clone(), port.clone());
    // On a separate thread, because a network namespace belongs to a thread.
    let inside = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let _ = namespace.send(File::open("/proc/thread-self/ns/net")?);
        if arrivals.recv().is_err() {
            return Err(io::Error::other("the cable was not made"));
        }
        let index = with_netlink(async |netlink| {
            let index = index(&netlink, &name).await?;
            set(&netlink, LinkUnspec::new_with_index(index).up()).await?;
            Ok(index)
        })?;
        wire::open(index)
    });
    let done = (|| {
        // The sender is gone if the thread failed; joining it says why.
        let Ok(namespace) = namespaces.recv() else { return Ok(()) };
        with_netlink(async |netlink| plug_in(&netlink, bridge, &other, &end, namespace.as_raw_fd()).await)?;
        let _ = moved.send(());
        Ok(())
    })();
    drop(moved);
    let socket = inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let failed = |source| StormError::Cable { bridge: bridge.to_owned(), source };
    done.map_err(failed)?;
    Ok((Cable { port }, Wire::new(socket.map_err(failed)?)))
}

async fn plug_in(netlink: &Handle, bridge: &str, port: &str, end: &str, namespace: RawFd) -> io::Result<()> {
    let bridge = index(netlink, bridge).await?;
    netlink.link().add(LinkVeth::new(port, end).build()).execute().await.map_err(io_error)?;
    let plugged = async {
        let end = index(netlink, end).await?;
        set(netlink, LinkUnspec::new_with_index(end).setns_by_fd(namespace)).await?;
        let port = index(netlink, port).await?;
        set(netlink, LinkUnspec::new_with_index(port).controller(bridge).up()).await
    };
    let done = plugged.await;
    if done.is_err() {
        // No half of a cable stays behind. The failure itself is reported already.
        let _ = remove(netlink, port).await;
    }
    done
}

async fn remove(netlink: &Handle, port: &str) -> io::Result<()> {
    let port = index(netlink, port).await?;
    netlink.link().del(port).execute().await.map_err(io_error)
}

/// Runs `work` with a netlink socket of the calling thread's network namespace.
fn with_netlink<T, F: Future<Output = io::Result<T>>>(work: impl FnOnce(Handle) -> F) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, netlink, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        work(netlink).await
    })
}

async fn set(netlink: &Handle, link: rtnetlink::LinkMessageBuilder<LinkUnspec>) -> io::Result<()> {
    netlink.link().set(link.build()).execute().await.map_err(io_error)
}

async fn index(netlink: &Handle, name: &str) -> io::Result<u32> {
    // A dump, because a query by name reports a missing interface as an error like any other.
    let links: Vec<_> = netlink.link().get().execute().try_collect().await.map_err(io_error)?;
    let found = links.iter().find(|l| l.attributes.contains(&LinkAttribute::IfName(name.to_owned())));
    found
        .map(|l| l.header.index)
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no interface is called `{name}`")))
}

fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
