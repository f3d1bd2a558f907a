package rpmdb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// capNames are the capabilities by number (capabilities(7)).
var capNames = strings.Fields("chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast net_admin net_raw " +
	"ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write " +
	"audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore")

// caps are the capabilities of a file, a bit for each.
type caps struct{ effective, permitted, inheritable uint64 }

// parseCaps reads capabilities as text (cap_from_text(3)): clauses of names and operations, such as
// "cap_net_raw,cap_net_admin=ep". Nothing means none.
func parseCaps(s string) (c caps, ok bool) {
	all := uint64(1)<<len(capNames) - 1
	for _, clause := range strings.Fields(s) {
		i := strings.IndexAny(clause, "=+-")
		if i < 0 {
			return c, false
		}
		var set uint64
		switch names := clause[:i]; strings.ToLower(names) {
		case "all":
			set = all
		case "":
			if clause[i] != '=' {
				return c, false
			}
			set = all
		default:
			for n := range strings.SplitSeq(names, ",") {
				k := slices.Index(capNames, strings.TrimPrefix(strings.ToLower(n), "cap_"))
				if k < 0 {
					return c, false
				}
				set |= 1 << k
			}
		}
		for ops := clause[i:]; ops != ""; {
			op := ops[0]
			n := strings.IndexAny(ops[1:], "=+-") + 1
			if n == 0 {
				n = len(ops)
			}
			flags := ops[1:n]
			ops = ops[n:]
			if op == '=' {
				c.effective, c.permitted, c.inheritable = c.effective&^set, c.permitted&^set, c.inheritable&^set
			} else if flags == "" {
				return c, false
			}
			for _, f := range []byte(flags) {
				var p *uint64
				switch f {
				case 'e':
					p = &c.effective
				case 'p':
					p = &c.permitted
				case 'i':
					p = &c.inheritable
				default:
					return c, false
				}
				if op == '-' {
					*p &^= set
				} else {
					*p |= set
				}
			}
		}
	}
	return c, true
}

// fileCaps reads the extended attribute security.capability, of revision 1, 2 or 3
// (linux/capability.h).
func fileCaps(b []byte) (c caps, ok bool) {
	if len(b) < 4 {
		return c, false
	}
	magic := binary.LittleEndian.Uint32(b)
	words := 2
	switch magic >> 24 {
	case 1:
		words = 1
	case 2, 3:
	default:
		return c, false
	}
	if len(b) < 4+8*words {
		return c, false
	}
	for i := range words {
		c.permitted |= uint64(binary.LittleEndian.Uint32(b[4+8*i:])) << (32 * i)
		c.inheritable |= uint64(binary.LittleEndian.Uint32(b[8+8*i:])) << (32 * i)
	}
	if magic&1 != 0 {
		c.effective = c.permitted | c.inheritable
	}
	return c, true
}

// caps compares the capabilities of a file with those of its package.
func (t *tree) caps(base, text string) (bool, error) {
	want, ok := parseCaps(text)
	if !ok {
		return false, nil
	}
	var is caps
	b := make([]byte, 64)
	// A descriptor of O_PATH takes no fgetxattr(2); its place in /proc does.
	n, err := unix.Lgetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", t.fd, base), "security.capability", b)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.EOPNOTSUPP):
	case err != nil:
		return false, os.NewSyscallError("lgetxattr", err)
	default:
		if is, ok = fileCaps(b[:n]); !ok {
			return false, nil
		}
	}
	return is == want, nil
}
