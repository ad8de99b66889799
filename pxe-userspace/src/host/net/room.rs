//! Receive buffers for the requests of a rack that is powered on at once.

use std::os::fd::AsFd;

use nix::sys::socket::{setsockopt, sockopt};

/// The kernel's default (`net.core.rmem_default`, 208 KiB) holds some hundred requests, because each is
/// charged for the whole buffer that it arrived in: about 2 KiB. What does not fit is dropped silently,
/// and a firmware's first retransmission comes after seconds.
const ROOM: usize = 16 << 20;

/// Makes a socket hold the requests of some thousand machines until they are read.
pub(crate) fn make_room(socket: &impl AsFd) {
    // With CAP_NET_ADMIN, which the appliance has, beyond `net.core.rmem_max`; without it, up to that.
    let result = setsockopt(socket, sockopt::RcvBufForce, &ROOM)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &ROOM));
    if let Err(error) = result {
        tracing::warn!(%error, "no room for many requests at once: some may have to be sent again");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::make_room;

    #[test]
    fn thousands_of_requests_wait_unread() {
        let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        make_room(&server);
        server.set_nonblocking(true).unwrap();
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let request = [0; 600];
        for _ in 0..4000 {
            client.send(&request).unwrap();
        }
        let received = (0..4000).take_while(|_| server.recv(&mut [0; 1000]).is_ok()).count();
        // Without CAP_NET_ADMIN the machine's limit holds, and there is nothing of ours to test.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(received, 4000);
        }
    }
}
