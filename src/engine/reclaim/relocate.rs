// SPDX-License-Identifier: GPL-2.0
//! Relocation: live records of a segment are appended to the log again.

use super::live::{live_blocks, node_is_live, node_of, Live};
use super::Maintenance;
use crate::engine::checkpoint::CheckpointKind;
use crate::engine::codec::Codecs;
use crate::engine::format::{
    Entry, Kind, NodeId, RecordHeader, BLOCK_SIZE, NODE_SHIFT, RECORD_HEADER, SEGMENT_HEADER, UNIT,
};
use crate::engine::io::data::{gather, DataRecord, Extent};
use crate::engine::log::EncodedRecord;
use crate::engine::map::load::Missing;
use crate::engine::map::table::Found;
use crate::engine::map::usage::Origin;
use crate::engine::map::Map;
use crate::engine::records::ReadBuffers;
use crate::engine::space::SpaceClass;
use crate::engine::store::{count, Store};
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::{Platform, Sabotage};

/// Bytes of dirty nodes that are never too many to wait for a checkpoint.
const FEW_DIRTY: u64 = 1 << 20;

/// True if so many nodes of the table are dirty that a checkpoint has to come first: they stay in memory.
pub(super) fn many_dirty<P: Platform>(store: &Store<P>) -> bool {
    let most = store.map.limit() / 2;
    store.log.checkpoint_cost.bytes() >= most.max(FEW_DIRTY)
}

impl<P: Platform> Maintenance<P> {
    /// Appends the live records of the segment at byte `base` of the image again, in space of `class`. `bytes` are those of
    /// the segment.
    ///
    /// # Errors
    ///
    /// Those of the log, and of loading nodes.
    pub(crate) fn relocate_records(
        &mut self,
        store: &Store<P>,
        bytes: &[u8],
        base: u64,
        seed: u32,
        class: SpaceClass,
    ) -> Result {
        let mut at = SEGMENT_HEADER;
        while at + RECORD_HEADER <= bytes.len() {
            let Some((header, payload)) = RecordHeader::decode::<P>(&bytes[at..], seed, at as u32)
            else {
                // Damage, or the end of a segment that was not filled. Further records are
                // found by their checksums, and are relocated only if the table points to them.
                at += UNIT;
                continue;
            };
            let address = base + at as u64;
            // Relocation makes nodes of the table dirty, and those stay in memory.
            if many_dirty(store) {
                self.checkpoint(store, CheckpointKind::Running)?;
            }
            let ws = self.checkpoint.workspace();
            match header.kind {
                Kind::Data => relocate_data(store, ws, &header, payload, address, class)?,
                Kind::MapNode => {
                    relocate_node(store, &mut ws.read, &header, payload, address, class)?
                }
                Kind::UsageNode => self.renew_usage(store, &header, address),
                Kind::Link => return Ok(()),
                Kind::Zero | Kind::Pad | Kind::Checkpoint => {}
            }
            at += header.units() as usize * UNIT;
        }
        Ok(())
    }

    /// Makes the next checkpoint store the page of the segment usage again whose node this is, or one
    /// below it.
    fn renew_usage(&self, store: &Store<P>, header: &RecordHeader, address: u64) {
        if self.checkpoint.stores_usage(header, address) {
            let page = header.number << (NODE_SHIFT * u32::from(header.count));
            store.map.lock().mark_page_dirty(page);
        }
    }
}

/// Live blocks of a record that are relocated together: from the first one up to a block that lies elsewhere.
struct Piece {
    /// The first block, counted from the first one of the record.
    from: u32,
    /// The blocks, a bit each, from `from` on.
    mask: u32,
    /// Blocks from `from` to the last one of `mask`.
    span: u32,
}

impl Piece {
    /// The first piece. There is a live block.
    fn first(live: Live) -> Self {
        let from = live.here.trailing_zeros();
        let reach = (!((live.here | live.holes) >> from)).trailing_zeros();
        let mask = (live.here >> from) & (u32::MAX >> (u32::BITS - reach.min(u32::BITS)));
        Self {
            from,
            mask,
            span: u32::BITS - mask.leading_zeros(),
        }
    }

    /// True if this is all that a record holds.
    fn is_all(&self, header: &RecordHeader, mask: u32) -> bool {
        self.mask == mask && self.from == 0 && self.span == u32::from(header.span)
    }

    /// True if block `bit` of the record belongs to it.
    fn has(&self, bit: u32) -> bool {
        bit >= self.from && (self.mask >> (bit - self.from)) & 1 == 1
    }
}

/// The mask of a data record that can be relocated: its span is natural, and lies on the device.
fn movable_mask<P: Platform>(
    store: &Store<P>,
    header: &RecordHeader,
    payload: &[u8],
) -> Option<u32> {
    let span = u64::from(header.span);
    let end = header.number.checked_add(span)?;
    let mask = header.mask(payload)?;
    let natural = store.layout.in_natural_unit(header.number, span);
    (natural && end <= store.blocks()).then_some(mask)
}

/// Relocates the live blocks of a data record.
// A frame of its own: the checkpoint that `relocate_records` may write does not need the space.
#[inline(never)]
fn relocate_data<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    header: &RecordHeader,
    payload: &[u8],
    address: u64,
    class: SpaceClass,
) -> Result {
    let Some(mask) = movable_mask(store, header, payload) else {
        return Ok(());
    };
    loop {
        let leaf = NodeId::leaf(header.number);
        match store.loader().node(&mut ws.read, leaf, Missing::Leave) {
            Ok(Found::Loaded) => {}
            Ok(_) => return Ok(()),
            // Whether the record is live, only the leaf knows. It stays.
            Err(error) if error.is_damage() => return Ok(()),
            Err(error) => return Err(error),
        }
        let live = live_blocks(&store.map.lock(), header, mask, address);
        if live.here == 0 {
            return Ok(());
        }
        let piece = Piece::first(live);
        let whole = piece.is_all(header, mask);
        let record = if whole {
            DataRecord::again::<P>(header, mask, payload, Origin::Moved { from: address })
        } else {
            match repack(&store.codecs, ws, header, payload, mask, &piece) {
                Some(record) => record,
                None => return Ok(()),
            }
        };
        let slot = store.log.slot(&store.file, &record.encoded, class)?;
        let mut stored = record.stored(slot.placed());
        if !whole {
            // It may be worth joining it with others.
            stored.origin = Origin::Unknown;
        }
        let unchanged = {
            let mut map = store.map.lock();
            map.enter(slot.placed())?;
            let loaded = map.find(header.number) == Found::Loaded;
            let now = live_blocks(&map, header, mask, address);
            loaded && (now == live || P::sabotaged(Sabotage::BlindMove))
        };
        if unchanged {
            slot.commit(|_| stored.map(&mut store.map.lock()))?;
            let bytes = u64::from(stored.units) * UNIT as u64;
            count(&store.counters.moved, bytes);
        }
    }
}

/// Encodes a piece of a data record anew, in `ws`. None if the record cannot be decompressed.
fn repack<'a, P: Platform>(
    codecs: &Codecs<P>,
    ws: &'a mut Workspace<P>,
    header: &RecordHeader,
    payload: &[u8],
    mask: u32,
    piece: &Piece,
) -> Option<DataRecord<'a>> {
    let packed = &payload[header.mask_len()..];
    let stored = usize::from(header.count) * BLOCK_SIZE;
    let blocks = ws.read.blocks.get_mut(..stored)?;
    if !codecs.decompress(header.algorithm, packed, blocks) {
        return None;
    }
    let kept = (0..u32::BITS)
        .filter(|bit| (mask >> bit) & 1 == 1)
        .zip(blocks.chunks_exact(BLOCK_SIZE))
        .filter(|&(bit, _)| piece.has(bit))
        .map(|(_, block)| block);
    let content = gather(kept, &mut ws.gather);
    let extent = Extent {
        block: header.number + u64::from(piece.from),
        span: piece.span as usize,
        mask: piece.mask,
    };
    Some(DataRecord::new::<P>(
        &mut ws.encoder,
        codecs,
        extent,
        content,
    ))
}

/// Relocates the stored copy of a node of the sector table.
// A frame of its own, as that of `relocate_data`.
#[inline(never)]
fn relocate_node<P: Platform>(
    store: &Store<P>,
    buffers: &mut ReadBuffers,
    header: &RecordHeader,
    payload: &[u8],
    address: u64,
    class: SpaceClass,
) -> Result {
    let id = node_of(header);
    let record = EncodedRecord::new::<P>(*header, &[], payload);
    let units = record.header().units();
    // The next checkpoint stores a dirty node anyway.
    let here = |map: &Map| !map.will_be_stored(id) && map.stores(id, address);
    match node_is_live(store, buffers, id, address) {
        Ok(true) if here(&store.map.lock()) => {}
        Ok(_) => return Ok(()),
        // Whether it is, only the node above knows. It stays.
        Err(error) if error.is_damage() => return Ok(()),
        Err(error) => return Err(error),
    }
    let slot = store.log.slot(&store.file, &record, class)?;
    let entry = Entry::new(slot.placed().address, units, 0, 1);
    let unchanged = {
        let mut map = store.map.lock();
        map.enter(slot.placed())?;
        here(&map)
    };
    if unchanged {
        slot.commit(|log| store.map.lock().move_stored(id, entry, log))?;
        count(&store.counters.moved, u64::from(units) * UNIT as u64);
    }
    Ok(())
}
