package rpm_test

import (
	"bytes"
	"database/sql"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	_ "modernc.org/sqlite"
)

// installed puts packages into an rpm database, and nothing else anywhere, and gives the
// blobs that rpm keeps of them.
func installed(t *testing.T, packages map[string][]byte) (home string, blobs [][]byte) {
	t.Helper()
	home = t.TempDir()
	if out, err := rpmCommand(t, home, "rpmdb", "--define", "_db_backend sqlite", "--initdb").CombinedOutput(); err != nil {
		t.Fatalf("rpmdb: %v: %s", err, out)
	}
	args := []string{"rpm", "--define", "_db_backend sqlite", "-i", "--justdb", "--nodeps", "--nosignature", "--noscripts", "--notriggers", "--ignorearch", "--force"}
	for name, b := range packages {
		file := filepath.Join(home, name)
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, file)
	}
	if out, err := rpmCommand(t, home, args...).CombinedOutput(); err != nil {
		t.Fatalf("rpm -i: %v: %s", err, out)
	}
	db, err := sql.Open("sqlite", "file:"+filepath.Join(home, "rpmdb", "rpmdb.sqlite")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rows, err := db.QueryContext(t.Context(), "SELECT blob FROM Packages ORDER BY hnum")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, b)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	if len(blobs) != len(packages) {
		t.Fatalf("rpm keeps %d of %d packages", len(blobs), len(packages))
	}
	return home, blobs
}

// The headers of a database that rpm wrote are read as rpm itself reads them, with what it
// noted of the installation. The headers of the packages are in them, untouched.
func TestInstalledHeadersAsRPMReadsThem(t *testing.T) {
	packages := fixtures(t)
	maps.DeleteFunc(packages, func(name string, b []byte) bool {
		// A database keeps no source packages, and one of those with the same name and version.
		p := read(t, b)
		return p.Header.IsSource() || p.Header.String(rpm.Name) == "rpm-basic" && name != "rpm-basic-with-ima-2.3.4-5.el9.noarch.rpm"
	})
	home, blobs := installed(t, packages)
	byName := map[string][]byte{}
	for _, b := range packages {
		p := read(t, b)
		byName[p.NEVRA().String()] = b
	}
	shown := map[rpm.Tag]bool{}
	for _, blob := range blobs {
		h, err := rpm.ParseInstalled(blob)
		if err != nil {
			t.Fatal(err)
		}
		n := h.NEVRA()
		file, ok := byName[n.String()]
		if !ok {
			t.Fatalf("the database has %s, which nobody installed", n)
		}
		delete(byName, n.String())
		out, err := rpmCommand(t, home, "rpm", "-q", "--xml", n.NVR()).Output()
		if err != nil {
			t.Fatalf("%s: rpm: %v", n, err)
		}
		sameTags(t, n.String(), out, values(h, false), shown)
		p := read(t, file)
		p.Header.Each(func(tag rpm.Tag, typ uint32, count int) {
			if tag != rpm.RegionImmutable && (!slices.Equal(h.Strings(tag), p.Header.Strings(tag)) || h.Int(tag) != p.Header.Int(tag) || h.Count(tag) != count) {
				t.Errorf("%s: tag %d of type %d differs from the package's", n, tag, typ)
			}
		})
		inDB, err := h.Files()
		if err != nil {
			t.Fatal(err)
		}
		inFile, err := p.Header.Files()
		if err != nil || !slices.Equal(inDB, inFile) {
			t.Errorf("%s: files %v, the package has %v, %v", n, inDB, inFile, err)
		}
	}
	if len(blobs) < 15 || len(byName) > 0 {
		t.Errorf("%d headers read, %d missing", len(blobs), len(byName))
	}
	const installTime, fileStates = 1008, 1029
	for _, tag := range []rpm.Tag{installTime, fileStates, rpm.SigSHA256, 5090} {
		if !shown[tag] {
			t.Errorf("no package shows tag %d", tag)
		}
	}
}

func TestHostileInstalledHeadersAreRefused(t *testing.T) {
	const text, i32, bin = rpm.TypeString, rpm.TypeInt32, rpm.TypeBin
	// A region of two entries (its own and the name) with its trailer behind "a", and room for
	// what comes behind it.
	region := func(covered int32, behind string, more ...[4]uint32) []byte {
		trailer := "\x00\x00\x00\x3f\x00\x00\x00\x07" + string(binary.BigEndian.AppendUint32(nil, uint32(-covered))) + "\x00\x00\x00\x10"
		return header("a\x00\x00\x00"+trailer+behind, append([][4]uint32{{63, bin, 4, 16}, {1000, text, 0, 1}}, more...)...)[8:]
	}
	good := region(32, "\x00\x00\x00\x07", [4]uint32{1008, i32, 20, 1})
	h, err := rpm.ParseInstalled(good)
	if err != nil || h.Int(1008) != 7 || h.String(rpm.Name) != "a" {
		t.Fatalf("a good one: %d %q %v", h.Int(1008), h.String(rpm.Name), err)
	}
	// Behind the region a tag may come again.
	h, err = rpm.ParseInstalled(region(32, "b\x00", [4]uint32{1000, text, 20, 1}))
	if err != nil || h.String(rpm.Name) != "b" {
		t.Errorf("of two names %q is taken, %v", h.String(rpm.Name), err)
	}
	for name, b := range map[string][]byte{
		"empty":                    nil,
		"with magic":               append([]byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}, good...),
		"cut":                      good[:len(good)-1],
		"more behind":              append(bytes.Clone(good), 0),
		"4 G entries":              {0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0},
		"no entries":               {0, 0, 0, 0, 0, 0, 0, 0},
		"region of nothing":        region(0, ""),
		"region of 1.5 entries":    region(24, ""),
		"region beyond the index":  region(48, ""),
		"negative region":          region(-32, ""),
		"text in the trailer":      region(32, "", [4]uint32{1008, text, 8, 1}),
		"number in the region":     region(32, "\x00\x00\x00\x07", [4]uint32{1008, i32, 0, 1}),
		"number outside":           region(32, "\x00\x00\x00\x07", [4]uint32{1008, i32, 24, 1}),
		"numbers outside":          region(32, "\x00\x00\x00\x07", [4]uint32{1008, i32, 20, 2}),
		"two share a place":        region(32, "\x00\x00\x00\x07", [4]uint32{1008, i32, 20, 1}, [4]uint32{1009, i32, 20, 1}),
		"string without end":       region(32, "\x07\x07\x07\x07", [4]uint32{1008, text, 20, 1}),
		"no type":                  region(32, "\x00\x00\x00\x07", [4]uint32{1008, 11, 20, 1}),
		"region tag at the end":    region(32, "\x00\x00\x00\x07", [4]uint32{62, bin, 20, 4}),
		"text beyond the region":   header("a\x00\x00\x00\x00\x00\x00\x3f\x00\x00\x00\x07\xff\xff\xff\xe0\x00\x00\x00\x10b\x00", [4]uint32{63, bin, 4, 16}, [4]uint32{1000, text, 20, 1})[8:],
		"a billion empty strings":  region(32, "\x00\x00\x00\x00", [4]uint32{1117, rpm.TypeArray, 20, 1_000_000_000}),
		"a million times the same": region(32, "\x00", slices.Repeat([][4]uint32{{1117, rpm.TypeArray, 20, 1}}, 0xffff)...),
	} {
		var h rpm.Header
		var err error
		bounded(t, name, len(b), 2, small, func() { h, err = rpm.ParseInstalled(b) })
		if fault.Code(err) != "rpm_header" {
			t.Errorf("%s: read as %d entries, %v", name, h.Len(), err)
		}
	}
}

// rpm lets what stands behind the region of an installed header replace what is in it.
func TestEntriesBehindTheRegionReplaceItsOwn(t *testing.T) {
	name := "one-epoch-0.1-1.x86_64.rpm"
	home, blobs := installed(t, map[string][]byte{name: fixtures(t)[name]})
	blob := blobs[0]
	il, dl := binary.BigEndian.Uint32(blob), binary.BigEndian.Uint32(blob[4:])
	index, store := blob[8:8+16*il], blob[8+16*il:]
	changed := binary.BigEndian.AppendUint32(nil, il+1)
	changed = binary.BigEndian.AppendUint32(changed, dl+8)
	changed = append(changed, index...)
	for _, v := range []uint32{uint32(rpm.Summary), rpm.TypeString, dl, 1} {
		changed = binary.BigEndian.AppendUint32(changed, v)
	}
	changed = append(append(changed, store...), "Changed\x00"...)
	db, err := sql.Open("sqlite", "file:"+filepath.Join(home, "rpmdb", "rpmdb.sqlite"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "UPDATE Packages SET blob = $1", changed); err != nil {
		t.Fatal(err)
	}
	out, err := rpmCommand(t, home, "rpm", "-q", "--qf", "%{SUMMARY}|%{NAME}|%{INSTALLTIME}", "one-epoch").CombinedOutput()
	if err != nil {
		t.Fatalf("rpm: %v: %s", err, out)
	}
	h, err := rpm.ParseInstalled(changed)
	if err != nil {
		t.Fatal(err)
	}
	const installTime = 1008
	if got := fmt.Sprintf("%s|%s|%d", h.String(rpm.Summary), h.String(rpm.Name), h.Int(installTime)); got != string(out) {
		t.Errorf("we read %s, rpm reads %s", got, out)
	}
}
