/**
 * Every limit of the protocol, in one place, each with its source. Limits that an operator may change are settings
 * (see the config tables); what stands here may only change with the protocol.
 *
 * Units are the last word of the name. "sync spec" is atproto.com/specs/sync, "data-validation" the guide of that name.
 */

/** Whole WebSocket message of an event stream. Source: sync spec. */
export const FRAME_BYTES_MAX = 5_000_000
/** CBOR items in one frame, nested ones too; 200 operations have 2,000. No source names a limit; it bounds memory. */
export const FRAME_ITEMS_MAX = 131_072
/** `blocks` of a #commit. Source: sync spec, lexicon subscribeRepos. */
export const COMMIT_BLOCKS_BYTES_MAX = 2_000_000
/** `blocks` of a #sync. Source: lexicon subscribeRepos. */
export const SYNC_BLOCKS_BYTES_MAX = 10_000
/** One record block; the sync spec's cap, lower than the guide's 1 MiB, is enforced on write. Source: sync spec. */
export const RECORD_BYTES_MAX = 1_000_000
/** One record block when reading what others wrote. Source: data-validation guide. */
export const RECORD_BYTES_READ_MAX = 1_048_576
/** Operations in one #commit, and writes in one applyWrites. Source: sync spec, lexicon subscribeRepos. */
export const COMMIT_OPS_MAX = 200
/**
 * Blocks in one #commit, against slices of countless tiny ones. 200 operations in a tree of 32 layers, each proven by
 * three paths and a record, need 19,400; no source names a limit.
 */
export const COMMIT_BLOCK_COUNT_MAX = 20_000
/** A rev may lie this far in the future. Source: sync spec ("few minutes"), practice of deployed relays. */
export const REV_FUTURE_TOLERANCE_MS = 5 * 60_000
/** Nesting of CBOR and JSON data. Source: data-validation guide. */
export const DATA_DEPTH_MAX = 32
/** Elements in one CBOR array or map. Source: data-validation guide. */
export const CONTAINER_ITEMS_MAX = 131_072
/** One map key. Source: data-validation guide. */
export const MAP_KEY_BYTES_MAX = 8_192
/** A binary CID. Source: data-validation guide. */
export const CID_BYTES_MAX = 100
/** Header of a CAR; an ordinary one is 58. 1,500 roots fit. Source: none names one; ours. */
export const CAR_HEADER_BYTES_MAX = 65_536
/** One block of a CAR, far above any record or MST node. Source: go-car's default section limit. */
export const CAR_BLOCK_BYTES_MAX = 8_388_608
/** Blocks in one CAR. Source: what a JavaScript Map can hold. */
export const CAR_BLOCKS_MAX = 16_777_216
/** One MST key (`collection/rkey`): an NSID, a slash and a record key. The reference caps at 1,024. */
export const MST_KEY_BYTES_MAX = 1_024
/** Height of an MST. 4^32 keys is beyond reach; more is a mined key. Source: repository spec asks for a cap, names none. */
export const MST_HEIGHT_MAX = 32
/** Entries in one MST node. Mean is 4; a node of this size is a mined one. Source: as above. */
export const MST_NODE_ENTRIES_MAX = 10_000

export const DID_LENGTH_MAX = 2_048
export const HANDLE_LENGTH_MAX = 253
export const NSID_LENGTH_MAX = 317
export const RKEY_LENGTH_MAX = 512
export const AT_URI_LENGTH_MAX = 8_192
export const URI_LENGTH_MAX = 8_192
export const DATETIME_LENGTH_MAX = 64
/** One label of a host name. Source: RFC 1035. */
export const DNS_LABEL_LENGTH_MAX = 63
/** RFC 5646 names no upper bound; this is the one of deployed validators. */
export const LANGUAGE_LENGTH_MAX = 128

/** A public key in base58; an uncompressed point has 90 characters. */
export const MULTIBASE_KEY_LENGTH_MAX = 100

/** Rotation keys of a did:plc. Source: did:plc spec v0.3.0; the directory's code admits 10. */
export const PLC_ROTATION_KEYS_MAX = 5
/** One signed PLC operation. Source: the directory's code; the specification says 7,500. */
export const PLC_OPERATION_BYTES_MAX = 4_000
/** Entries in `alsoKnownAs`, `services` and `verificationMethods`, each. Source: the directory's code, did:plc spec. */
export const PLC_ENTRIES_MAX = 10
/** Source of these lengths, in characters: the directory's code. */
export const PLC_AKA_LENGTH_MAX = 258
export const PLC_ID_LENGTH_MAX = 32
export const PLC_SERVICE_TYPE_LENGTH_MAX = 256
export const PLC_SERVICE_ENDPOINT_LENGTH_MAX = 512
export const PLC_KEY_LENGTH_MAX = 256
/** An operation can be nullified this long after its time. Source: did:plc spec. */
export const PLC_RECOVERY_MS = 72 * 3_600_000
/** Operations of one DID that a directory accepts. Source: the directory's code. */
export const PLC_OPERATIONS_PER_WINDOW = [
  { name: 'hour', ms: 3_600_000, operations: 10 },
  { name: 'day', ms: 86_400_000, operations: 30 },
  { name: 'week', ms: 7 * 86_400_000, operations: 100 },
] as const

/** A DID document fetched from anywhere; one of did:plc has at most about 8,000. No source names a limit. */
export const DID_DOCUMENT_BYTES_MAX = 262_144
/** What a handle's well-known file may hold: a DID and white space around it. No source names a limit. */
export const HANDLE_ANSWER_BYTES_MAX = 4_096

/** A service-auth token; a real one has 400 to 600 characters. No source names a limit. */
export const JWT_LENGTH_MAX = 8_192

/** Event sequence numbers are below 2^53. Source: event-stream spec. */
export const SEQ_MAX = Number.MAX_SAFE_INTEGER

/** Events in one checkpoint of a relay's log; their list has 40 bytes for each. A number of ours. */
export const CHECKPOINT_EVENTS_MAX = 100_000
