// Package sandbox runs commands in clean roots on behalf of builds: an overlay
// of read-only layers and one writable directory, no network, no privileges,
// limits for memory, processes, time and disk, and nothing left over after.
//
// What runs inside is hostile. The OCI runtime (crun or runc, whichever is
// proved to work by a trial run) makes the container: own user, pid, network,
// ipc, uts, mount and cgroup namespaces, no capabilities, no_new_privs, a
// seccomp list, masked /proc. Around it this package adds what must hold even
// when the runtime or drover itself is killed: the runtime is process 1 of an
// outer pid namespace and dies with the thread that started it, so the kernel
// ends every process of a run, however it forked, when drover ends.
//
// What a run may use is bounded by a control group (version 1 or 2); where the
// host gives none, by resource limits and by watching. Disk is bounded by a file
// system in a sparse image, or by watching a plain directory. Probe says which
// mechanism enforces which limit.
//
// Package managers of the host, which are trusted but start scriptlets, run by
// HostCommand on the same root: with network, isolated only in processes and
// mounts.
//
// Roots live in directories below one state directory, each held by a file lock.
// Reap removes those whose owner is gone.
//
// Linux only, root only. No knowledge of packages, builds or servers may come in
// here.
package sandbox
