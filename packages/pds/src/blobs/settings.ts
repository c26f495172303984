/** The settings about blobs, and what follows from them. */
import type { S3Place } from './s3.ts'

const HOUR_MS = 3_600_000
const section = 'Storage'

export const blobSettings = {
  blobDirectory: {
    type: 'path',
    env: ['PDS_BLOBSTORE_DISK_LOCATION'],
    flag: '--blob-directory',
    doc: 'Folder of blobs. Default: `blobs` in the data folder.',
    section,
  },
  blobS3Bucket: {
    type: 'string',
    env: ['PDS_BLOBSTORE_S3_BUCKET'],
    flag: '--blob-s3-bucket',
    doc: 'Bucket of blobs, instead of a folder.',
    section,
  },
  blobS3Region: {
    type: 'string',
    env: ['PDS_BLOBSTORE_S3_REGION'],
    doc: 'Region of the bucket. Default: as for all tools of AWS.',
    section,
  },
  blobS3Endpoint: {
    type: 'url',
    env: ['PDS_BLOBSTORE_S3_ENDPOINT'],
    doc: 'URL of a service other than AWS that speaks S3.',
    section,
  },
  blobS3ForcePathStyle: {
    type: 'bool',
    env: ['PDS_BLOBSTORE_S3_FORCE_PATH_STYLE'],
    doc: 'The bucket stands in the path and not in the host name.',
    section,
  },
  blobS3AccessKeyId: {
    type: 'string',
    env: ['PDS_BLOBSTORE_S3_ACCESS_KEY_ID'],
    doc: 'Key for the bucket. Default: as for all tools of AWS.',
    section,
  },
  blobS3SecretAccessKey: {
    type: 'string',
    secret: true,
    env: ['PDS_BLOBSTORE_S3_SECRET_ACCESS_KEY'],
    doc: 'Secret that belongs to the key.',
    section,
  },
  blobS3UploadTimeoutMs: {
    type: 'duration',
    default: 20_000,
    env: ['PDS_BLOBSTORE_S3_UPLOAD_TIMEOUT_MS'],
    doc: 'For sending 5 MiB of a blob to the bucket.',
    section,
  },
  blobS3RequestTimeoutMs: {
    type: 'duration',
    default: 15_000,
    env: ['PDS_BLOBSTORE_S3_REQUEST_TIMEOUT_MS'],
    doc: 'For an answer about the bucket.',
    section,
  },
  blobUploadLimit: {
    type: 'bytes',
    default: 100 * 1024 * 1024,
    env: ['PDS_BLOB_UPLOAD_LIMIT'],
    flag: '--blob-upload-limit',
    doc: 'Largest blob; clients read it in describeServer.',
    section,
  },
  blobQuota: {
    type: 'bytes',
    env: ['PDS_BLOB_QUOTA'],
    flag: '--blob-quota',
    doc: 'What all blobs of one account may come to. Default: unlimited.',
    section,
  },
  blobGraceMs: {
    type: 'duration',
    default: 6 * HOUR_MS,
    env: ['PDS_BLOB_GRACE'],
    flag: '--blob-grace',
    doc: 'How long a blob that no record refers to is kept; an hour at least.',
    section,
  },
} as const

interface Given {
  blobDirectory: string | undefined
  blobS3Bucket: string | undefined
  blobS3Region: string | undefined
  blobS3Endpoint: string | undefined
  blobS3ForcePathStyle: boolean | undefined
  blobS3AccessKeyId: string | undefined
  blobS3SecretAccessKey: string | undefined
  blobS3UploadTimeoutMs: number
  blobS3RequestTimeoutMs: number
}

/** The bucket of blobs; null if they lie in a folder. @throws Error if the settings contradict each other */
export function s3Place(given: Given): S3Place | null {
  const { blobS3Bucket: bucket, blobS3AccessKeyId: accessKeyId, blobS3SecretAccessKey: secretAccessKey } = given
  if (bucket === undefined) return null
  if (given.blobDirectory !== undefined) throw new Error('Blobs lie in a folder or in a bucket: two settings name both')
  if ((accessKeyId === undefined) !== (secretAccessKey === undefined)) {
    throw new Error('The key of the bucket needs both its id and its secret')
  }
  return {
    bucket,
    region: given.blobS3Region,
    endpoint: given.blobS3Endpoint,
    forcePathStyle: given.blobS3ForcePathStyle,
    credentials: accessKeyId && secretAccessKey ? { accessKeyId, secretAccessKey } : undefined,
    uploadTimeoutMs: given.blobS3UploadTimeoutMs,
    requestTimeoutMs: given.blobS3RequestTimeoutMs,
  }
}
