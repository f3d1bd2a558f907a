package rpmdb

import (
	"context"
	"database/sql"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"
)

func TestCapsAsTheKernelKeepsThem(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"cap_net_raw=ep", "cap_net_raw,cap_net_admin=p", "cap_chown+ei cap_bpf+ep", "=p", "cap_kill,cap_mknod=eip cap_mknod-i", "cap_checkpoint_restore=eip"} {
		want, ok := parseCaps(text)
		if !ok {
			t.Fatalf("%q was not read", text)
		}
		if out, err := exec.Command("setcap", text, file).CombinedOutput(); err != nil {
			t.Fatalf("setcap %q: %v: %s", text, err, out)
		}
		tr := newTree(filepath.Dir(file))
		if err := tr.enter("/"); err != nil {
			t.Fatal(err)
		}
		same, err := tr.caps("f", text)
		if err != nil || !same {
			t.Errorf("%q: %v, %v; read as %x", text, same, err, want)
		}
		if same, err := tr.caps("f", "cap_lease=ep"); err != nil || same {
			t.Errorf("%q is the same as another: %v", text, err)
		}
		tr.close()
	}
	for _, text := range []string{"cap_nothing=ep", "cap_chown", "cap_chown=x", "+ep", "cap_chown+"} {
		if c, ok := parseCaps(text); ok {
			t.Errorf("%q was read as %x", text, c)
		}
	}
}

func FuzzCaps(f *testing.F) {
	f.Add("cap_net_raw,cap_net_admin=ep cap_chown-e", []byte{1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, text string, attr []byte) {
		c, ok := parseCaps(text)
		if all := uint64(1)<<len(capNames) - 1; ok && (c.effective|c.permitted|c.inheritable)&^all != 0 {
			t.Errorf("%q gives capabilities that there are not: %x", text, c)
		}
		if c, ok := fileCaps(attr); ok && c.effective != 0 && c.effective != c.permitted|c.inheritable {
			t.Errorf("%x: %x", attr, c)
		}
	})
}

// A header of the database gives a package and files, or an error, and never more files than it has.
func FuzzInstalled(f *testing.F) {
	blob := binary.BigEndian.AppendUint32(nil, 2)
	blob = binary.BigEndian.AppendUint32(blob, 2+16)
	for _, v := range []uint32{63, rpm.TypeBin, 2, 16, uint32(rpm.Name), rpm.TypeString, 0, 1} {
		blob = binary.BigEndian.AppendUint32(blob, v)
	}
	blob = append(blob, "a\x00"...)
	for _, v := range []uint32{63, rpm.TypeBin, 0xffffffe0, 16} {
		blob = binary.BigEndian.AppendUint32(blob, v)
	}
	if h, err := rpm.ParseInstalled(blob); err != nil || packageOf(h).Name != "a" {
		f.Fatalf("the seed is no header: %v", err)
	}
	f.Add(blob)
	f.Fuzz(func(t *testing.T, blob []byte) {
		h, err := rpm.ParseInstalled(blob)
		if err != nil {
			return
		}
		p := infoOf(h)
		if len(p.NEVRA()) > 2*len(blob)+32 {
			t.Errorf("a name of %d bytes from %d", len(p.NEVRA()), len(blob))
		}
		if fs, err := filesOf(h); err == nil && len(fs) > len(blob) {
			t.Errorf("%d files from %d bytes", len(fs), len(blob))
		}
	})
}

// A database that changes each time it is read without locks is no answer.
func TestChangingDatabase(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "usr/lib/sysimage/rpm/rpmdb.sqlite")
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)"); err != nil {
		t.Fatal(err)
	}
	n := 0
	change := func(upTo int) func(*sql.Tx) error {
		n = 0
		return func(tx *sql.Tx) error {
			if n++; n <= upTo {
				if _, err := db.ExecContext(context.Background(), "CREATE TABLE t"+string(rune('a'+n+10*upTo))+" (a)"); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if err := read(t.Context(), dir, change(2)); err != nil || n != 3 {
		t.Errorf("%d reads: %v", n, err)
	}
	if err := read(t.Context(), dir, change(attempts)); fault.Code(err) != "rpmdb_busy" || n != attempts {
		t.Errorf("%d reads: %v", n, err)
	}
}
