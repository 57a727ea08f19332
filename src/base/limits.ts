// Every bound of the program, with its unit and its reason. Nothing waits, queues, reads or retries without one of these.
export * from './license-limits.ts';

/** Bytes in one line of the guest channel, newline included (contracts.md). */
export const CHANNEL_LINE_BYTES_MAX = 16 * 1024;
/** Bytes of one chunked channel message put together again (contracts.md). */
export const CHANNEL_MESSAGE_BYTES_MAX = 4 * 1024 * 1024;
/** Bytes of text in one chunk: JSON escaping may grow a character sixfold at worst, and the envelope needs room. */
export const CHANNEL_CHUNK_TEXT_BYTES_MAX = 2 * 1024;
/** Lines a guest may send in one second before its session is cut: an honest agent sends a 4 MiB inventory in chunks. */
export const CHANNEL_LINES_PER_SECOND_MAX = 4096;
/** Refused messages in one session before the guest is quarantined: noise after a restore is a handful. */
export const CHANNEL_REFUSALS_MAX = 64;
/** Refusals forgiven per hour, so that a VM of many months is not cut for the noise of many restores. */
export const CHANNEL_REFUSALS_FORGIVEN_PER_HOUR = 64;
/** Bytes a guest may send in one second; twice that at once. A 4 MiB inventory in chunks is about 6 MiB on the wire. */
export const CHANNEL_BYTES_PER_SECOND_MAX = 8 * 1024 * 1024;
/** Hellos a guest may say in one minute: each makes a new session; an honest agent says one per boot or restart. */
export const CHANNEL_HELLOS_PER_MINUTE_MAX = 30;
/** Nesting of one channel message: the deepest honest one has 5 levels, and deep nesting makes JSON.parse slow. */
export const CHANNEL_JSON_DEPTH_MAX = 16;
/** Bytes waiting for a guest that does not read: one largest message in chunks. */
export const CHANNEL_OUTGOING_BYTES_MAX = 6 * 1024 * 1024;
/** Milliseconds between attempts to connect to a VM's channel, doubling from the first to the second. */
export const CHANNEL_CONNECT_DELAY_MIN_MS = 20;
export const CHANNEL_CONNECT_DELAY_MAX_MS = 1_000;
/** Milliseconds an agent that runs already has to say hello by itself before the host asks for it, and how often it asks. */
export const CHANNEL_HELLO_WAIT_MS = 1_000;
export const CHANNEL_HELLO_REQUESTS_MAX = 5;

/** Audit records in one transaction, and waiting for one: more than a fleet opening at once. */
export const AUDIT_BATCH_MAX = 1_000;
export const AUDIT_QUEUE_MAX = 20_000;
/** Bytes of one audit record: evidence of a plan of 2,000 items is about 400 KiB. */
export const AUDIT_RECORD_BYTES_MAX = 2 * 1024 * 1024;
/** Audit records in one answer, and about how many bytes of them: a page is shorter where records are large. */
export const AUDIT_PAGE_MAX = 1_000;
export const AUDIT_PAGE_BYTES_MAX = 8 * 1024 * 1024;
/** Audit records that are verified without a pause: about 30 ms in which the daemon does nothing else. */
export const AUDIT_VERIFY_SLICE_MAX = 200;
/** Characters of one line of an exported chain: a record in base64; one of the first format has every quote escaped. */
export const AUDIT_LINE_CHARS_MAX = 8 * 1024 * 1024;
/** Bytes of an exported chain that are read at a time. */
export const AUDIT_READ_BYTES = 256 * 1024;
/** Public keys given for one chain, and bytes of the file they come in: a rotation each month for decades. */
export const AUDIT_KEYS_MAX = 512;
export const AUDIT_KEYS_FILE_BYTES_MAX = 128 * 1024;

/** Bytes of one QMP line: query-qmp-schema, the largest answer we know, is about 200 KiB. */
export const QMP_LINE_BYTES_MAX = 4 * 1024 * 1024;
/** Milliseconds for QEMU to answer one QMP command; a healthy one answers in a few. */
export const QMP_COMMAND_TIMEOUT_MS = 20_000;
/** Milliseconds until a started QEMU must offer its QMP socket. */
export const QEMU_START_TIMEOUT_MS = 30_000;
/** Milliseconds to wait for DEVICE_DELETED after device_del; measured 78-229 ms, TCG under load takes longer. */
export const DEVICE_UNPLUG_TIMEOUT_MS = 20_000;
/** Milliseconds between two looks whether the guest has unlocked its drive; each costs QEMU well under one. */
export const DRIVE_LOCK_LOOK_MS = 20;
/** Milliseconds between two looks whether QEMU has let go of a block node. */
export const NODE_LOOK_MS = 5;
/** Milliseconds for QEMU to let go of a block node after its device is gone; it does so in its next idle moment. */
export const NODE_RELEASE_TIMEOUT_MS = 5_000;
/** Milliseconds a guest gets to power off when asked (ACPI) before it is ended. */
export const GUEST_POWERDOWN_TIMEOUT_MS = 60_000;
/** Milliseconds for a QEMU process to be gone after `quit`, and then after SIGKILL. */
export const QEMU_EXIT_TIMEOUT_MS = 10_000;
/** Milliseconds for a throw-away VM to prove that KVM works; it needs well under one second, a broken KVM hangs. */
export const KVM_PROBE_TIMEOUT_MS = 5_000;
/** Free bytes that a disk overlay must find besides what its plan needs: what a guest writes in the minutes of an installation. */
export const OVERLAY_FREE_BYTES_MIN = 256 * 1024 * 1024;
/** Bytes that installing one byte of packages writes at most: unpacked, the old files, the package manager's own, the journal. */
export const OVERLAY_BYTES_PER_PLAN_BYTE = 8;
/** Milliseconds for merging an overlay into its disk: tens of gigabytes on a slow disk. */
export const OVERLAY_MERGE_TIMEOUT_MS = 2 * 60 * 60_000;
/** Milliseconds for the last step of a merge, in which the guest's writes wait. */
export const OVERLAY_SWITCH_TIMEOUT_MS = 60_000;
/** Milliseconds between two looks at a merge. */
export const OVERLAY_LOOK_MS = 50;
/** Milliseconds before a merge that failed is tried again, doubling from the first to the second: a full file system needs somebody. */
export const OVERLAY_RETRY_MS = 60_000;
export const OVERLAY_RETRY_MAX_MS = 60 * 60_000;
/** Bytes kept of what a guest overwrites while its disk is read beside it: seconds of a guest that installs. */
export const VIEW_OLD_BYTES_MAX = 512 * 1024 * 1024;
/** Seconds that one write of the guest may wait for the copy of what it overwrites; then the view breaks. */
export const VIEW_COPY_TIMEOUT_S = 10;
/** Readers of one view: one of the whole disk, one of a partition, and one that has not noticed its end. */
export const VIEW_CONNECTIONS_MAX = 4;
/** Versions named in a run's state; the plan has them all. */
export const PLAN_SUMMARY_ITEMS_MAX = 20;
/** Milliseconds for which a KVM that did not work is not tried again by the next daemon. */
export const KVM_MEMORY_MS = 60 * 60_000;
/**
 * MiB of translated code that an emulated VM's QEMU keeps; its own default is 1024. Each write of the guest to memory goes through all
 * translations ever made of that page: with the default, a Debian guest that reboots after an installation spends minutes in the one
 * loop of its kernel's unpacker (five and more, measured), with this a few seconds.
 */
export const TCG_CODE_MIB = 128;
/** Bytes of a guest's serial console that QEMU keeps; a power of two (ringbuf), so that a guest cannot fill our disk. */
export const CONSOLE_BYTES = 256 * 1024;
/** Bytes of a unix socket's path (sun_path is 108 with its zero). */
export const SOCKET_PATH_BYTES_MAX = 107;
/** Events of one VM kept for a listener that is not there yet. */
export const VM_EVENTS_PENDING_MAX = 256;

/** Characters of one line that nft prints: the whole table with 10,000 taps is below 2 MiB. */
export const NFT_LINE_CHARS_MAX = 8 * 1024 * 1024;
/** Milliseconds for nft to answer; a change takes 3 ms, a loaded machine longer. */
export const NFT_ANSWER_TIMEOUT_MS = 20_000;
/** Set elements in one nft command; larger changes are split into several. */
export const NFT_ELEMENTS_PER_COMMAND_MAX = 512;
/** Starts of a dying nft process for one request before it is given up. */
export const NFT_STARTS_MAX = 3;

/** Installed products one guest may report: a full Debian desktop has about 4,000 packages. */
export const INVENTORY_PRODUCTS_MAX = 20_000;
/** Items in one plan or manifest. */
export const PLAN_ITEMS_MAX = 2_000;
/** Files on one drive. */
export const DRIVE_FILES_MAX = 100_000;
/** Milliseconds between two looks at the blobs of one VM's plan on that VM's word: a guest must not keep the disk busy with lies. */
export const BLOB_DOUBT_INTERVAL_MS = 30_000;
/** How many times as long as such a look took it is not repeated: a large plan takes minutes to read. */
export const BLOB_DOUBT_REST = 9;
/** How long QEMU keeps a guest's reads waiting for an NBD server that is gone, in seconds, before they fail. */
export const DRIVE_RECONNECT_DELAY_S = 20;
/** Milliseconds for a process that exports a drive to answer after its start; it needs 50, and its guest's reads wait for it. */
export const EXPORT_START_TIMEOUT_MS = 5_000;
/** Milliseconds for one to end when asked, and then after SIGKILL. */
export const EXPORT_END_TIMEOUT_MS = 3_000;
/** Milliseconds between two looks at one that an earlier daemon started: nobody tells us of its end. */
export const EXPORT_LOOK_MS = 250;
/** Starts in a row of one that keeps dying, and milliseconds before the second, doubling: three seconds, well within DRIVE_RECONNECT_DELAY_S. */
export const EXPORT_STARTS_MAX = 5;
export const EXPORT_RESTART_DELAY_MS = 200;
/** Milliseconds after which one that dies counts as having been sound. */
export const EXPORT_SOUND_MS = 60_000;
/** Connections to one NBD export: QEMU needs one, a copying tool a few. */
export const EXPORT_CONNECTIONS_MAX = 16;
/** Bytes of its log that are told. */
export const EXPORT_LOG_BYTES_MAX = 600;
/** KiB that the kernel reads ahead of whoever reads a drive as a file: what one request of FUSE can carry. */
export const EXPORT_READ_AHEAD_KIB = 1_024;
/** Mounts that may lie over one another where a drive is shown as a file: each crash leaves one. */
export const EXPORT_STALE_MOUNTS_MAX = 16;
/** Drives built at once on one host: each holds its metadata and a copy buffer, and a fleet that starts at once wants hundreds. */
export const DRIVE_BUILDS_AT_ONCE_MAX = 4;
/** Files, symlinks and folders handed to the image builder: all files of a drive with a folder for each, and some. */
export const DRIVE_ENTRIES_MAX = 250_000;
/** Folders on one drive: the path tables of ISO 9660 count them in 16 bits. */
export const DRIVE_FOLDERS_MAX = 65_535;
/** Bytes of a path on a drive: Linux's PATH_MAX without its final NUL. */
export const DRIVE_PATH_BYTES_MAX = 4095;
/** Bytes of a symlink's target on a drive: with a name of 255 bytes it still fits one continuation sector. */
export const DRIVE_LINK_BYTES_MAX = 1024;
/** Bytes of a drive's names and inline files, put together in memory: 100,000 files need 30 MB, 65,535 folders 280 MB. */
export const DRIVE_METADATA_BYTES_MAX = 384 * 1024 * 1024;
/** Bytes of one file of a cloud-init seed: a long script with its certificates; most clouds allow 16 to 64 KiB. */
export const SEED_FILE_BYTES_MAX = 1024 * 1024;
/** Files that QEMU holds open for one drive. */
export const DRIVE_OPEN_FILES_MAX = 256;
/** Bytes up to which a blob is copied behind the metadata instead of being opened on its own. */
export const DRIVE_PACKED_BLOB_BYTES_MAX = 64 * 1024;
/** Bytes copied at most to keep the open files bounded; more is no longer "without a copy". */
export const DRIVE_PACKED_BYTES_MAX = 8 * 1024 * 1024 * 1024;
/** Characters of a name: product, version, path component (ISO 9660 Rock Ridge allows 255 bytes). */
export const NAME_CHARS_MAX = 255;
/** Characters of a guest's or vendor's free text that we keep. */
export const FREE_TEXT_CHARS_MAX = 2_000;
/** Health checks of one VM's policy. */
export const HEALTH_CHECKS_MAX = 32;
/** Milliseconds for which a guest may try its health checks again; less than the deadline of its judgement. */
export const HEALTH_TIMEOUT_MAX_MS = 90_000;
/** Characters of a captured install output's tail that travels and is kept. */
export const OUTPUT_TAIL_CHARS_MAX = 4_000;

/** Bytes of stdout+stderr kept of a command we run. */
export const COMMAND_OUTPUT_BYTES_MAX = 16 * 1024 * 1024;
/** Milliseconds for a short host command (ip, nft, qemu-img) under a loaded machine. */
export const COMMAND_TIMEOUT_MS = 60_000;

/** Bytes of one artifact: larger than any Debian package and most bundles. */
export const ARTIFACT_BYTES_MAX = 8 * 1024 * 1024 * 1024;
/** Bytes of a metadata file (InRelease, TUF role) before it is verified. */
export const METADATA_BYTES_MAX = 16 * 1024 * 1024;
/** Bytes of a compressed package index. */
export const INDEX_BYTES_MAX = 256 * 1024 * 1024;
/** Bytes of a package index unpacked; main has 50 MB. The signed Release names the exact size where it can. */
export const INDEX_UNPACKED_BYTES_MAX = 2 * 1024 * 1024 * 1024;
/** Bytes of a keyring; Debian's, with the keys of many years, has 55 KiB. */
export const KEYRING_BYTES_MAX = 4 * 1024 * 1024;
/** Milliseconds by which an archive's date may be ahead of our clock: what is dated later would forbid every honest release after it. */
export const ARCHIVE_DATE_AHEAD_MAX_MS = 60 * 60_000;
/** Rounds in which updates that do not fit together are left out; a chain of packages that block each other is a few long. */
export const SELECT_ROUNDS_MAX = 100;
/** Bytes of a package's changelog that are read, unpacked; the newest entries stand first, and 4 MiB reach back many years. */
export const CHANGELOG_BYTES_MAX = 4 * 1024 * 1024;
/** Bytes of a package's files that are unpacked to find its changelog: a kernel with its modules has 400 MiB. */
export const CHANGELOG_SEARCH_BYTES_MAX = 1024 * 1024 * 1024;
/** Advisories taken from one changelog; the kernel's newest entries have several thousand. */
export const ADVISORIES_PER_CHANGELOG_MAX = 20_000;
/** Advisories one release names; more says no more to people. */
export const RELEASE_ADVISORIES_MAX = 200;
/** Packages whose changelogs wait to be read; what comes beyond is passed over. */
export const CHANGELOGS_WAITING_MAX = 1_000;
/** Package names whose offers are remembered between two refreshes: about 3 KB each, and a fleet has a few thousand in all. */
export const CATALOG_NAMES_MAX = 8_000;
/** Bytes of one stanza of a package index; the longest of Debian main has about 110,000. */
export const STANZA_BYTES_MAX = 2 * 1024 * 1024;
/** Other releases that one release names as installed together with it; a kernel needs one, a compiler a dozen. */
export const RELEASE_REQUIRES_MAX = 100;
/** Characters of one line of a Release, a control file or an apt source. */
export const STANZA_LINE_CHARS_MAX = 1024 * 1024;
/** Milliseconds without a byte after which a download is given up. */
export const HTTP_STALL_TIMEOUT_MS = 30_000;
/** Milliseconds for a connection and the response headers. */
export const HTTP_HEADERS_TIMEOUT_MS = 30_000;
/** A download waits on its server in windows of this length, and each window must bring the least number of bytes below. */
export const HTTP_PROGRESS_WINDOW_MS = 30_000;
/** Bytes one window must bring: 1 KiB/s, less than any line worth having; below it a server only holds us up (TUF: slow retrieval). */
export const HTTP_PROGRESS_BYTES_MIN = 30 * 1024;
/** Bytes of an error answer's or redirect's body that are read so that its connection can be used again. */
export const HTTP_DISCARD_BYTES_MAX = 64 * 1024;
/** Attempts of one download, each resuming where the last one stopped. */
export const DOWNLOAD_ATTEMPTS_MAX = 4;
/** Redirects followed for artifacts; more is a loop. */
export const HTTP_REDIRECTS_MAX = 5;
/** Downloads at once per host: enough to fill a link, few enough to be polite. */
export const DOWNLOADS_AT_ONCE_MAX = 4;
/** Milliseconds before a failed download is tried again; doubled each time. */
export const DOWNLOAD_RETRY_FIRST_MS = 500;
/** Milliseconds after which an unfinished download that nobody asked for again is thrown away: a week. */
export const PARTIAL_AGE_MAX_MS = 7 * 24 * 60 * 60 * 1000;
/** Bytes read at once when a blob is hashed: large enough for the disk, small enough to throttle. */
export const SCRUB_PIECE_BYTES = 1024 * 1024;

/** Entries in one bundle. */
export const BUNDLE_ENTRIES_MAX = 100_000;
/** Bytes of a bundle unpacked. */
export const BUNDLE_UNPACKED_BYTES_MAX = 16 * 1024 * 1024 * 1024;

/** Vendors of one host: each is refreshed at intervals and asked for every VM. */
export const VENDORS_MAX = 200;
/** Fields of one JSON object in TUF metadata: tuf-js copies an object once per field, and 10,000 of them blocked the process for 19 s. */
export const TUF_OBJECT_FIELDS_MAX = 2_000;
/** Delegated roles followed in one repository, hash bins included: one for each team, or 256 bins. */
export const TUF_DELEGATIONS_MAX = 256;
/** Delegations from the top-level targets down: a team, its product, its part of it. */
export const TUF_DELEGATION_DEPTH_MAX = 8;
/** Path patterns and hash prefixes of all delegations together: each is held against every target's path. */
export const TUF_DELEGATION_PATHS_MAX = 4_096;
/** Targets of all roles of one repository together; more than one role's 2,000 need delegations. */
export const TUF_TARGETS_MAX = 10_000;
/** Bytes of all delegated metadata of one repository together: kept in one file and read whole. */
export const TUF_DELEGATED_BYTES_MAX = 64 * 1024 * 1024;
/** Signatures of one metadata file, and keys of one role: each verified signature forms the whole file again. */
export const TUF_SIGNATURES_MAX = 32;
/**
 * Steps of parsing and verifying one metadata file, and all of one refresh: the square of its largest object's fields, once
 * for parsing and once for each signature. 4 million take 0.4 s: a file of 2,000 fields may have five signatures.
 */
export const TUF_FILE_STEPS_MAX = 24_000_000;
export const TUF_REFRESH_STEPS_MAX = 96_000_000;
/** Other places of one repository: asked one after another until one serves us. */
export const TUF_MIRRORS_MAX = 16;
/** Comparisons of versions with ranges while requirements are resolved: under a second; honest ones need some hundreds. */
export const TUF_CHOICE_CHECKS_MAX = 2_000_000;
/** The same while it is explained why newer versions are left out: an explanation is worth less time than the choice. */
export const TUF_EXPLAIN_CHECKS_MAX = 500_000;
/** Products whose requirements hang together: the search keeps a copy of their state for each decision. */
export const TUF_CHOICE_PRODUCTS_MAX = 1_000;
/** Artifacts whose last mirror is remembered, so that a download that is tried again goes to the next one. */
export const TUF_MIRROR_TURNS_MAX = 1_000;
/** Private keys of one name in a folder, and all of one folder: a handful, each rotation leaves one. */
export const TUF_KEY_FILES_MAX = 1_000;
/** Bytes of TUF root metadata: a few keys and signatures. */
export const TUF_ROOT_BYTES_MAX = 512 * 1024;
/** Bytes of TUF timestamp metadata: one version and one digest. */
export const TUF_TIMESTAMP_BYTES_MAX = 16 * 1024;
/** New roots taken over in one refresh, one download each. */
export const TUF_ROOT_ROTATIONS_MAX = 256;

/** Events waiting for one VM's runner; more means the guest floods or the host hangs. */
export const RUNNER_QUEUE_MAX = 1_024;
/** Events remembered per VM for `vm events`; older ones are dropped from the table. */
export const EVENTS_KEPT_PER_VM = 2_000;

/** Bytes of a configuration file. */
export const CONFIG_FILE_BYTES_MAX = 1024 * 1024;
/** Bytes of an audit checkpoint in a file: it has about 300, and whoever kept it may have indented it. */
export const CHECKPOINT_FILE_BYTES_MAX = 4 * 1024;
/** Bytes of one HTTP request body on our API. */
export const API_BODY_BYTES_MAX = 256 * 1024;

/** Reboots of a guest within one run: kernel and agent updates need one each; more is a loop. */
export const REBOOTS_MAX = 5;
/** Milliseconds before a gate that could not be closed is closed again, doubling from the first to the second. */
export const GATE_CLOSE_RETRY_MS = 2_000;
export const GATE_CLOSE_RETRY_MAX_MS = 60_000;
/** Milliseconds before a state that could not be saved is saved again. */
export const JOURNAL_RETRY_MS = 1_000;
/** Sessions of the agent within one run: one for each reboot and restart of the agent or the daemon; more is a loop. */
export const SESSIONS_PER_RUN_MAX = 50;
/** Offers within one run: an agent that dies while it installs gets another chance, not endless ones. */
export const OFFERS_MAX = 5;
/** Times that a run is planned anew because what is configured changed before its drive was made: a source that changes all the time is for somebody to look at. */
export const REPLANS_MAX = 5;
/** Times within one run that a guest's word makes the host look at its copies and show a drive made anew: a second look may find what the first one fetched gone bad, a third would only serve a guest that lies. */
export const DRIVE_DOUBTS_MAX = 2;
/** Milliseconds a run may stay in each state. A systemd guest under TCG needs 33 s to its agent; installs may be long. */
export const STATE_DEADLINES_MS = {
  booting: 300_000,
  reporting: 60_000,
  planning: 1_800_000,
  offering: 120_000,
  installing: 3_600_000,
  rebooting: 300_000,
  judging: 120_000,
  opening: 60_000,
  'rolling-back': 120_000,
} as const;
/** Tries to reach a vendor while a VM waits for its plan, and milliseconds between them. */
export const PLAN_ATTEMPTS_MAX = 3;
export const PLAN_RETRY_DELAY_MS = 2_000;
/** Milliseconds for which verified vendor metadata is used without asking again: VMs that start together share one check. */
export const VENDOR_RECHECK_MS = 10 * 60_000;
/** Bytes of one answer of our own API that a client reads: 20,000 products of one VM are about 3 MB. */
export const API_ANSWER_BYTES_MAX = 64 * 1024 * 1024;
/** Milliseconds a client waits for an answer: checking all vendors or starting QEMU under load may take minutes. */
export const API_ANSWER_TIMEOUT_MS = 10 * 60_000;
/** Event streams open at once on one daemon: a screen or a boot script each. */
export const API_STREAMS_MAX = 256;
/** Milliseconds between pings of an event stream; one that has not answered by the next is closed. */
export const API_STREAM_PING_MS = 30_000;
/** Milliseconds a reader of events may take for one; then it is closed and may resume. */
export const API_STREAM_STALL_MS = 30_000;
/** Attempts to reach the daemon again after an event stream broke: a restart of the service takes a few seconds. */
export const API_STREAM_RECONNECTS_MAX = 30;
/** Milliseconds between these attempts. */
export const API_STREAM_RECONNECT_DELAY_MS = 1_000;

/** Milliseconds between two `hello` of the guest agent until the host opens the session, doubling up to the second. */
export const AGENT_HELLO_INTERVAL_MS = 1_000;
export const AGENT_HELLO_INTERVAL_MAX_MS = 4_000;
/** Milliseconds the agent waits before it looks again at a port that is absent or whose host side is closed: first, and at most. */
export const AGENT_PORT_RETRY_MIN_MS = 50;
export const AGENT_PORT_RETRY_MAX_MS = 500;
/** Bytes the agent queues for a host that does not read: two of the largest messages. */
export const AGENT_QUEUE_BYTES_MAX = 2 * CHANNEL_MESSAGE_BYTES_MAX;
/** Host requests waiting in the agent behind the one at work; the host asks one thing at a time. */
export const AGENT_REQUESTS_MAX = 16;
/** Milliseconds for an offered drive to appear: hot-plug takes 0.2 s, a slow or busy guest needs more. */
export const AGENT_DRIVE_WAIT_MS = 20_000;
/** Milliseconds to look on after a drive with another manifest was found: the right one may just be arriving. */
export const AGENT_DRIVE_MISMATCH_WAIT_MS = 2_000;
/**
 * Milliseconds between two looks at the block devices: a tenth of the time waited so far, within these bounds. Hot-plug is done in 50
 * to 100 ms in most guests, and then the looks themselves would be what takes longest; a guest that is slow is not kept busy by them.
 */
export const AGENT_DRIVE_LOOK_MIN_MS = 10;
export const AGENT_DRIVE_LOOK_MAX_MS = 100;
/** Milliseconds for an `install` or `check` entry of a bundle that names no limit of its own. */
export const AGENT_ENTRY_TIMEOUT_MS = 10 * 60_000;
/** Milliseconds for one apt or dpkg run over all packages of a manifest, and for unpacking one compressed bundle. */
export const AGENT_PACKAGES_TIMEOUT_MS = 60 * 60_000;
/** Milliseconds for a newly written agent to print its version before it replaces the running one. */
export const AGENT_PROBE_TIMEOUT_MS = 20_000;
/** Milliseconds the agent gives its last words to leave the machine before it reboots or ends. */
export const AGENT_FLUSH_TIMEOUT_MS = 500;
/** Milliseconds init has to restart the machine in order before the agent does it by force. */
export const AGENT_INIT_REBOOT_TIMEOUT_MS = 60_000;
/** Milliseconds after its start until the agent notes the boot on disk: after the path to the plug, which it would slow down. */
export const AGENT_KEEP_BOOT_DELAY_MS = 2_000;
/** Bytes of memory the agent may use at most: a 16 MiB manifest, parsed. */
export const AGENT_MEMORY_BYTES_MAX = 256 * 1024 * 1024;
/** Milliseconds for one compiler run or download while the agent is built; QuickJS takes 25 s on a busy core. */
export const AGENT_BUILD_TIMEOUT_MS = 10 * 60_000;
/** Bytes of /manifest.json: 2,000 items and 20,000 further files fit. */
export const MANIFEST_BYTES_MAX = 16 * 1024 * 1024;
/** Bytes of one of the agent's own state files: the results of a full plan with their outputs. */
export const AGENT_STATE_BYTES_MAX = 16 * 1024 * 1024;
/** Bytes of dpkg's status file: a full desktop has about 6 MB. */
export const DPKG_STATUS_BYTES_MAX = 64 * 1024 * 1024;
/** Bytes of the kernel's list of modules: Debian's generic kernel has 0.6 MB of them. */
export const MODULE_LIST_BYTES_MAX = 8 * 1024 * 1024;
/** Milliseconds for the guest's init to end or start services: systemd itself gives a service 90 s to end. */
export const AGENT_SERVICES_TIMEOUT_MS = 120_000;
/** Between two tries of a health check, and how long one may take: a service that hangs must not hold up the others. */
export const AGENT_HEALTH_LOOK_MS = 500;
export const AGENT_HEALTH_TRY_MS = 10_000;
/** How long a port on loopback may take to answer; the agent does nothing else meanwhile. */
export const AGENT_PORT_ANSWER_MS = 200;
/** Bytes of the agent's notes on services that packages want restarted: a thousand of them. */
export const AGENT_SERVICE_NOTES_BYTES_MAX = 256 * 1024;
/** Milliseconds an asked-for inventory waits for dpkg to be repaired; the host gives the guest 60 s to report. */
export const AGENT_REPAIR_WAIT_MS = 30_000;
/** Bytes that stay free beside what packages take: dpkg's own records, logs, caches. */
export const AGENT_SPACE_RESERVE_BYTES = 32 * 1024 * 1024;
/** What a package takes on the disk, in its own sizes, where it does not say: xz packs programs to about a fourth. */
export const AGENT_PACKAGE_GROWTH_FACTOR = 5;
/** Bytes of a kernel, its symbols and its configuration in /boot; Debian 12's take 12 MB. */
export const AGENT_BOOT_BYTES_MIN = 16 * 1024 * 1024;
/** Bytes of an initramfs where there is none yet to go by; Debian 12's generic ones have 30 to 50 MB. */
export const AGENT_INITRD_BYTES = 64 * 1024 * 1024;
/** Processes looked at for programs that were replaced; a busy server has a few hundred. */
export const PROCESSES_LOOKED_AT_MAX = 10_000;
/** Bytes of one process' list of mapped files; a browser has about 1 MB. */
export const PROCESS_MAPS_BYTES_MAX = 8 * 1024 * 1024;
/** Products with a record of their own in one guest. */
export const AGENT_PRODUCTS_MAX = 1_000;
/** Bytes the agent reads, hashes or copies before it looks at the channel again. */
export const AGENT_SLICE_BYTES = 4 * 1024 * 1024;
/** Bytes of one extended (pax, GNU) tar header: names of at most a few KiB. */
export const TAR_EXTENSION_BYTES_MAX = 64 * 1024;
/** Milliseconds between two progress notes of one run. */
export const PROGRESS_INTERVAL_MS = 250;
/** Milliseconds between two checks of all vendors while the daemon runs. */
export const VENDOR_POLL_MS = 15 * 60_000;
/** Notes that one guest causes in a second, and at once; an installation of 2,000 items makes a few a second. */
export const GUEST_NOTES_PER_SECOND_MAX = 20;
export const GUEST_NOTES_BURST_MAX = 500;
/** Milliseconds between two looks whether the store is over its budget. */
export const STORE_COLLECT_MS = 60 * 60_000;
/** Milliseconds between two readings of every stored blob, and the pace of the reading: disks rot slowly, and guests come first. */
export const STORE_SCRUB_MS = 7 * 24 * 60 * 60_000;
export const STORE_SCRUB_BYTES_PER_SECOND = 32 * 1024 * 1024;
/** Notes read from the journal at a time. */
export const EVENTS_PAGE_MAX = 500;
/** Milliseconds for one command of the doctor: a version is printed at once, a hanging tool must not hold the page. */
export const DOCTOR_COMMAND_TIMEOUT_MS = 10_000;

/** Milliseconds between two looks whether the fence in the kernel still is as we left it. */
export const FENCE_CHECK_MS = 10_000;

/** Images beneath a disk's own, one on top of the other; longer chains are slow and are usually flattened. */
export const DISK_BACKING_DEPTH_MAX = 8;
/** Characters of one stanza of dpkg's status file: conffiles and descriptions of a few KiB. */
export const DPKG_STANZA_CHARS_MAX = 256 * 1024;

/** Milliseconds for one look into a switched-off disk: it takes a tenth of a second, a hostile or rotten one is left. */
export const INSPECT_TIMEOUT_MS = 30_000;
/** Milliseconds the programs of a look have to end by themselves before they are killed. */
export const INSPECT_END_TIMEOUT_MS = 3_000;
/** Seconds of processor time, bytes of memory and bytes of a written file, for each program of a look. */
export const INSPECT_CPU_SECONDS_MAX = 20;
export const INSPECT_MEMORY_BYTES_MAX = 1024 * 1024 * 1024;
export const INSPECT_FILE_BYTES_MAX = 8 * 1024 * 1024;
/** Looks into disks at the same time; further ones wait. */
export const INSPECT_AT_ONCE_MAX = 2;
/** Bytes that debugfs may print about one file or folder: a folder of a thousand records. */
export const INSPECT_ANSWER_BYTES_MAX = 1024 * 1024;
/** Bytes of a small text file that is read from a disk: os-release, a record of a product. */
export const INSPECT_TEXT_BYTES_MAX = 64 * 1024;
/** Bytes of the agent's executable: under 1 MB by design, a development build may be larger. */
export const INSPECT_AGENT_BYTES_MAX = 16 * 1024 * 1024;
/** Links followed from one name to a file; as many as most kernels allow in a loop of links are never needed. */
export const INSPECT_LINK_HOPS_MAX = 8;
/** Partitions of one disk that are looked at; a GPT holds 128 by default. */
export const INSPECT_PARTITIONS_MAX = 128;
/** Disks of one VM that are searched for its system. */
export const INSPECT_DISKS_MAX = 4;
/** Milliseconds, and seconds of processor time for each program, to check a running VM's disk against what its guest claims. */
export const VERIFY_TIMEOUT_MS = 90_000;
export const VERIFY_CPU_SECONDS_MAX = 60;
/** Running VMs whose disks are checked at the same time; further ones wait. */
export const VERIFY_AT_ONCE_MAX = 4;
/** Bytes that replaying a journal may write aside; a journal of ext4 has at most 1 GiB, little of it not yet in its place. */
export const VERIFY_JOURNAL_BYTES_MAX = 512 * 1024 * 1024;
/** Files of installed updates that are looked for on a disk; a kernel has 5,000. */
export const VERIFY_FILES_MAX = 50_000;
/** Bytes of them that are read and hashed, in one file and in all, and how many at a time. Of more, chance chooses. */
export const VERIFY_FILE_BYTES_MAX = 32 * 1024 * 1024;
export const VERIFY_READ_BYTES_MAX = 192 * 1024 * 1024;
export const VERIFY_PART_BYTES_MAX = 8 * 1024 * 1024;
/** Bytes of one package's list of digests: 50,000 files with long names. */
export const VERIFY_LIST_BYTES_MAX = 8 * 1024 * 1024;
/** Names of products told in one difference between disk and agent; the record has the counts of all. */
export const INSPECT_NAMES_TOLD_MAX = 5;

/** Left-out versions named in the timeline and in reasons: a page of a terminal; the plan has them all. */
export const REMARKS_MAX = 5;

/** Pages of 4 KiB of a database that a backup copies before it lets others work. */
export const BACKUP_PAGES_AT_ONCE = 256;
/** Files in one backup, and bytes of its table of contents: a few dozen, or one for each package of the store with `--with-blobs`. */
export const BACKUP_FILES_MAX = 200_000;
export const BACKUP_MANIFEST_BYTES_MAX = 64 * 1024 * 1024;

/** Times that a backup begins again because the keys of the audit chain were being changed meanwhile. */
export const BACKUP_KEY_TRIES_MAX = 5;

/** Milliseconds by which the wall clock may be ahead of what is sure and count for good at once: a host that was off overnight. */
export const TRUST_JUMP_MAX_MS = 24 * 60 * 60_000;
/** Milliseconds that a clock which is further ahead must stand there before that counts for good: a wrong one is usually set within minutes. */
export const TRUST_SETTLE_MS = 60 * 60_000;
/** Milliseconds between two notes on the disk of how late it is at least: what a power cut may take back. */
export const TRUST_SAVE_MS = 5 * 60_000;
/** Milliseconds by which the wall clock may be behind before the doctor says so; a correction by NTP is smaller. */
export const TRUST_BEHIND_MAX_MS = 60_000;
/** Milliseconds between two looks for stored blobs that have not been read for long. */
export const STORE_SCRUB_LOOK_MS = 60 * 60_000;

/** Damaged blobs named in the result of one reading of the store; the log names all. */
export const SCRUB_ROTTEN_TOLD_MAX = 50;
/** Milliseconds between two questions of the command line whether a reading of the store has ended. */
export const SCRUB_ASK_MS = 500;

/** Milliseconds to end in order after a signal, before the process ends anyway; systemd waits 90 s before it kills. */
export const ENDING_TIMEOUT_MS = 60_000;
/** Milliseconds that requests under way have to be answered when the daemon ends; then the rooms they wait for are closed. */
export const API_DRAIN_MS = 2_000;

/** Configuration items of one VM, bytes of one of them as JSON, and characters of one file in it. */
export const CONFIG_ITEMS_MAX = 500;
export const CONFIG_ITEM_BYTES_MAX = 2 * 1024 * 1024;
export const CONFIG_FILE_CHARS_MAX = 1024 * 1024;
/** Files that one set of configuration writes in a guest: some items of many files, or many items of a few. */
export const CONFIG_FILES_MAX = 10_000;
/** Links of the guest's own system on the way to one of its files: more is a circle. */
export const AGENT_CONFIG_LINKS_MAX = 16;
/** Bytes of a file that configuration replaces, which is kept until the machine is admitted: no configuration is larger. */
export const AGENT_CONFIG_PREVIOUS_BYTES_MAX = 16 * 1024 * 1024;
/** Bytes of the guest's list of users, of groups, of interfaces. */
export const AGENT_ACCOUNTS_BYTES_MAX = 4 * 1024 * 1024;
/** Milliseconds for which the health checks of a configuration item are tried before its set is rolled back. */
export const AGENT_CONFIG_HEALTH_MS = 30_000;
/** Bytes of the whole configuration of one VM, rendered: what the host holds in memory while it plans. */
export const GUEST_CONFIG_BYTES_MAX = 32 * 1024 * 1024;
/** Named values of one layer. */
export const GUEST_CONFIG_VALUES_MAX = 1_000;
/** Files in the folder of guest configuration: a group or a VM each, and what editors leave. */
export const GUEST_CONFIG_FILES_MAX = 20_000;
/** Bytes of one signed document of a configuration server, in base64 and with its signatures. */
export const GUEST_CONFIG_ANSWER_BYTES_MAX = 16 * 1024 * 1024;
/** Characters of the tag by which its document is asked for again. */
export const ETAG_CHARS_MAX = 1_024;
/** Milliseconds for a configuration server to answer, connection and body included: a VM that starts waits for it. */
export const GUEST_CONFIG_ANSWER_TIMEOUT_MS = 15_000;
/** Milliseconds for which a VM's document counts as asked for; and for which a server that was away is not asked again. */
export const GUEST_CONFIG_RECHECK_MS = 60_000;
export const GUEST_CONFIG_AWAY_MS = 30_000;
/** Milliseconds between two rounds of questions for all VMs, and the part of it by which each round is early or late. */
export const GUEST_CONFIG_POLL_MS = 10 * 60_000;
export const GUEST_CONFIG_POLL_JITTER = 0.25;
/** Milliseconds within which the first round begins: hosts of one place start together. */
export const GUEST_CONFIG_FIRST_POLL_MS = 20_000;
/** Questions at once to a configuration server. */
export const GUEST_CONFIG_ASKED_AT_ONCE_MAX = 4;
/** Milliseconds for which a seed stays after its VM was admitted: an agent may be done before the guest's cloud-init has begun to read. */
export const SEED_READ_MS = 10 * 60_000;
/** Bytes of one secret: a keystore with its chain has some ten thousand. */
export const GUEST_SECRET_BYTES_MAX = 256 * 1024;
