// SPDX-License-Identifier: GPL-2.0
//! The memory that a device serves requests with: a [`Pool`] for each lane. It grows with the requests, and what is not
//! needed is given back.

use crate::engine::{self, Pool, ReadBuffers, Volume, Workspace};
use crate::lane::Lane;
use crate::platform::kernel::Kernel;
use crate::platform::mem::{Buf, Need};

/// The memory that serving one write takes.
pub(crate) struct Writer {
    /// Data of the request, up to a record. The pages of a request may change while the request is
    /// served, but the data that the engine compresses and checksums must not.
    pub(crate) bounce: Buf,
    /// Memory of the engine for one operation.
    pub(crate) workspace: Workspace<Kernel>,
}

impl Writer {
    /// Allocates the memory to serve a write to `volume`.
    fn new(need: Need, volume: &Volume<Kernel>) -> engine::Result<Self> {
        Ok(Self {
            bounce: Buf::zeroed_if(need, volume.layout().record_size as usize)?,
            workspace: volume.workspace_if(need)?,
        })
    }
}

/// The memory of the lanes of a device. Flushes need none.
pub(crate) struct Pools {
    reads: Pool<Kernel, ReadBuffers>,
    writes: Pool<Kernel, Writer>,
    metadata: Pool<Kernel, Writer>,
    discards: Pool<Kernel, ReadBuffers>,
}

impl Pools {
    /// Allocates the memory to serve one request of each lane. With it, requests are served when there is no memory for
    /// more, one after the other.
    pub(crate) fn new(volume: &Volume<Kernel>) -> engine::Result<Self> {
        let readers = |lane: Lane| {
            let first = volume.read_buffers_if(Need::Required)?;
            let bytes = first.memory();
            Pool::new(lane.width(), first, bytes)
        };
        let writers = |lane: Lane| {
            let first = Writer::new(Need::Required, volume)?;
            let bytes = first.bounce.len() as u64 + first.workspace.memory();
            Pool::new(lane.width(), first, bytes)
        };
        Ok(Self {
            reads: readers(Lane::Read)?,
            writes: writers(Lane::Write)?,
            metadata: writers(Lane::Metadata)?,
            discards: readers(Lane::Discard)?,
        })
    }

    /// Calls `f` with the memory to serve a read.
    pub(crate) fn read<R>(
        &self,
        volume: &Volume<Kernel>,
        f: impl FnOnce(&mut ReadBuffers) -> R,
    ) -> R {
        self.reads.with(|need| volume.read_buffers_if(need), f)
    }

    /// Calls `f` with the memory to serve a write of `metadata` or of other data.
    pub(crate) fn write<R>(
        &self,
        volume: &Volume<Kernel>,
        metadata: bool,
        f: impl FnOnce(&mut Writer) -> R,
    ) -> R {
        let writers = match metadata {
            true => &self.metadata,
            false => &self.writes,
        };
        writers.with(|need| Writer::new(need, volume), f)
    }

    /// Calls `f` with the memory to serve a discard.
    pub(crate) fn discard<R>(
        &self,
        volume: &Volume<Kernel>,
        f: impl FnOnce(&mut ReadBuffers) -> R,
    ) -> R {
        self.discards.with(|need| volume.read_buffers_if(need), f)
    }

    /// Bytes of memory. Takes no lock.
    pub(crate) fn memory(&self) -> u64 {
        self.reads.memory() + self.writes.memory() + self.metadata.memory() + self.discards.memory()
    }

    /// Bytes of memory that [`shed`](Self::shed) may give back. Takes no lock.
    pub(crate) fn sheddable(&self) -> u64 {
        self.reads.sheddable()
            + self.writes.sheddable()
            + self.metadata.sheddable()
            + self.discards.sheddable()
    }

    /// Gives back about `bytes` bytes of memory that no request uses, and returns how many were.
    pub(crate) fn shed(&self, bytes: u64) -> u64 {
        let mut given = self.reads.shed(bytes);
        given += self.writes.shed(bytes.saturating_sub(given));
        given += self.metadata.shed(bytes.saturating_sub(given));
        given + self.discards.shed(bytes.saturating_sub(given))
    }

    /// Gives back memory that no request has needed since the last call.
    pub(crate) fn trim(&self) {
        self.reads.trim();
        self.writes.trim();
        self.metadata.trim();
        self.discards.trim();
    }
}
