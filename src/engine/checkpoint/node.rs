// SPDX-License-Identifier: GPL-2.0
//! One node, of the sector table or of the segment usage, as a record, and appending it.

use crate::engine::format::{encode_node, Entry, Kind, NodeId, RecordHeader, NODE_BYTES};
use crate::engine::log::{EncodedRecord, LogState};
use crate::engine::space::SpaceClass;
use crate::engine::store::Store;
use crate::engine::workspace::Workspace;
use crate::engine::Result;
use crate::platform::Platform;

/// The record of the node in `ws.words`.
pub(crate) fn node_record<P: Platform>(
    ws: &mut Workspace<P>,
    kind: Kind,
    id: NodeId,
) -> EncodedRecord<'_> {
    let bytes = &mut ws.read.blocks[..NODE_BYTES];
    encode_node(&ws.words, bytes);
    let (algorithm, payload) = ws.encoder.encode_node(bytes);
    let header = RecordHeader {
        algorithm: algorithm.tag(),
        count: id.level,
        ..RecordHeader::plain(kind, id.index)
    };
    EncodedRecord::new::<P>(header, &[], payload)
}

/// Appends the node in `ws.words`; `apply` learns its place in the same critical section.
pub(super) fn append_node<P: Platform>(
    store: &Store<P>,
    ws: &mut Workspace<P>,
    kind: Kind,
    id: NodeId,
    apply: &mut dyn FnMut(Entry, &LogState) -> Result,
) -> Result {
    let record = node_record(ws, kind, id);
    let units = record.header().units();
    let slot = store
        .log
        .slot(&store.file, &record, SpaceClass::Checkpoint)?;
    let placed = slot.placed();
    store.map.lock().enter(placed)?;
    let entry = Entry::new(placed.address, units, 0, 1);
    slot.commit(|log| apply(entry, log))
}
