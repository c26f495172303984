/** Settings of the did:plc directory. */
import { defineSettings, type Settings } from '@millisky/server/config'
import { LOG_LEVELS } from '@millisky/server/trace'

export const settings = defineSettings('plc', {
  port: {
    type: 'port',
    default: 2582,
    env: ['PLC_PORT'],
    flag: '--port',
    section: 'Network',
    doc: 'TCP port to listen on; 0 takes a free one.',
  },
  bind: {
    type: 'string',
    default: '127.0.0.1',
    env: ['PLC_BIND'],
    flag: '--bind',
    section: 'Network',
    doc: 'Address to listen on.',
  },
  dataDir: {
    type: 'path',
    default: 'data/plc',
    env: ['PLC_DATA_DIR'],
    flag: '--data-dir',
    section: 'Storage',
    doc: 'Folder of the database.',
  },
  db: {
    type: 'string',
    env: ['PLC_DB'],
    flag: '--db',
    section: 'Storage',
    doc: 'Another SQLite database than `plc.sqlite` in the data folder: a path, or `:memory:` to keep nothing.',
  },
  replicaOf: {
    type: 'url',
    env: ['PLC_REPLICA_OF'],
    flag: '--replica-of',
    section: 'Replica',
    doc: 'Another directory to follow, verify and serve; operations are not accepted here then. Needs a database of its own.',
  },
  devMode: {
    type: 'bool',
    default: false,
    env: ['PLC_DEV_MODE'],
    flag: '--dev-mode',
    section: 'Limits',
    doc: 'For development networks: any number of operations per DID.',
  },
  streamWindow: {
    type: 'duration',
    default: 7 * 86_400_000,
    env: ['PLC_STREAM_WINDOW'],
    flag: '--stream-window',
    section: 'Limits',
    doc: 'How far back `/export/stream` begins; older operations are read from `/export`.',
  },
  streamsMax: {
    type: 'int',
    min: 0,
    default: 500,
    env: ['PLC_STREAMS_MAX'],
    flag: '--streams-max',
    section: 'Limits',
    doc: 'Connections to `/export/stream` at a time.',
  },
  logLevel: {
    type: 'enum',
    values: LOG_LEVELS,
    default: 'info',
    env: ['PLC_LOG_LEVEL'],
    flag: '--log-level',
    section: 'Logs',
    doc: 'The least important kind of log line to write.',
  },
})

export type PlcSettings = Settings<typeof settings>
