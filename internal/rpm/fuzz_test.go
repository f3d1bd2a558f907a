package rpm_test

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"drover/internal/fault"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/gzip"
)

// allocated is how many bytes fn takes from the heap, all garbage counted: no allocation of
// it can be larger, and no number of small ones can hide.
func allocated(fn func()) uint64 {
	var a, b runtime.MemStats
	runtime.ReadMemStats(&a)
	fn()
	runtime.ReadMemStats(&b)
	return b.TotalAlloc - a.TotalAlloc
}

// The constants of the bounds. Errors, small values and what the runtime does by itself go
// into the first; the scanner adds its buffers, and a decompressor its tables.
const (
	small   = 16 << 10
	buffers = 192 << 10
	// Lists of structs: the shortest file or dependency that a header or a document can
	// hold, against the struct and its strings.
	lists = 32
)

// bounded fails when fn takes more than times the input and a constant from the heap. The
// tests of a parser share it with its fuzz target.
func bounded(t testing.TB, what string, input, times, constant int, fn func()) {
	t.Helper()
	if n := allocated(fn); n > uint64(times*input+constant) {
		t.Fatalf("%s takes %d bytes for an input of %d", what, n, input)
	}
}

// code fails unless err is nil or one of the codes that a caller is promised.
func code(t testing.TB, err error, codes ...string) {
	t.Helper()
	if err == nil {
		return
	}
	for _, c := range codes {
		if fault.Code(err) == c {
			return
		}
	}
	t.Fatalf("an error of code %q: %v", fault.Code(err), err)
}

// useHeader asks a header that was accepted for everything that it can tell.
func useHeader(t testing.TB, h rpm.Header) {
	raw := len(h.Raw())
	bounded(t, "a walk", raw, 2, small, func() { walk(h) })
	var files []rpm.File
	var err error
	bounded(t, "Files", raw, lists, small, func() { files, err = h.Files() })
	code(t, err, "rpm_header")
	w, err2 := h.FileWalk()
	if err == nil && err2 != nil {
		t.Fatalf("files but no walk: %v", err2)
	}
	for _, f := range files {
		if !w.Next() || f.Path != string(w.Dir())+string(w.Base()) || f.Mode != w.Mode() || f.Flags != w.Flags() {
			t.Fatalf("the walk and the list differ at %q", f.Path)
		}
	}
	bounded(t, "DepList", raw, lists, small, func() {
		for k := rpm.Requires; k <= rpm.Enhances; k++ {
			h.DepList(k)
		}
	})
	bounded(t, "Changes", raw, lists, small, func() { h.Changes() })
	h.Each(func(tag rpm.Tag, typ uint32, count int) {
		if h.Count(tag) <= 0 && count > 0 {
			t.Fatalf("tag %d of type %d has %d values and none", tag, typ, count)
		}
		n := h.Ints(tag)
		for i := -1; i <= n.Len(); i++ {
			n.At(i)
		}
		for range h.Texts(tag) {
			count--
		}
		_, _ = h.Bytes(tag), h.Int(tag)
	})
	_, _ = h.NEVRA().String(), h.FileDigest()
	// Whatever a header holds, the repository's metadata stays well-formed.
	p := &rpm.Package{Sig: h, Header: h}
	var out [][]byte
	bounded(t, "rendering", raw, 4*lists, small, func() { // most of it buffers that grow
		out = [][]byte{rpm.Primary(nil, p, rpm.Place{}), rpm.Filelists(nil, h, ""), rpm.Other(nil, h, "")}
	})
	for _, b := range out {
		wellFormed(t, b)
	}
}

func wellFormed(t testing.TB, b []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatalf("metadata that is no XML: %v: %.2000q", err, b)
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, b := range fixtures(f) {
		p := read(f, b)
		f.Add(p.Header.Raw())
		f.Add(p.Sig.Raw())
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h rpm.Header
		var n int
		var err error
		bounded(t, "ParseHeader", len(b), 2, small, func() { h, n, err = rpm.ParseHeader(b) })
		code(t, err, "rpm_header")
		if err != nil {
			return
		}
		if n != len(h.Raw()) || !bytes.Equal(h.Raw(), b[:n]) {
			t.Fatal("the header is not the bytes it was read from")
		}
		useHeader(t, h)
	})
}

func FuzzInstalled(f *testing.F) {
	for _, b := range fixtures(f) {
		h := read(f, b).Header.Raw()
		f.Add(h[8:])
		// As rpm keeps them, with an entry behind the region.
		il, dl := binary.BigEndian.Uint32(h[8:]), binary.BigEndian.Uint32(h[12:])
		blob := binary.BigEndian.AppendUint32(nil, il+1)
		blob = binary.BigEndian.AppendUint32(blob, dl+4)
		blob = append(blob, h[16:16+16*il]...)
		for _, v := range []uint32{1008, rpm.TypeInt32, dl, 1} {
			blob = binary.BigEndian.AppendUint32(blob, v)
		}
		f.Add(append(append(blob, h[16+16*il:]...), 0, 0, 0, 1))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var h rpm.Header
		var err error
		bounded(t, "ParseInstalled", len(b), 2, small, func() { h, err = rpm.ParseInstalled(b) })
		code(t, err, "rpm_header")
		if err == nil {
			useHeader(t, h)
		}
	})
}

// FuzzPackage reads whole files: lead, both headers, digests, names, signatures.
func FuzzPackage(f *testing.F) {
	for _, b := range fixtures(f) {
		f.Add(b)
	}
	key := newKey(f, packet.PubKeyAlgoEdDSA, packet.Curve25519)
	sig := signature(f, key, []byte("something"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		var p *rpm.Package
		var err error
		bounded(t, "Read", len(b), 2, small, func() { p, err = rpm.Read(r, int64(len(b))) })
		code(t, err, "rpm_header")
		if err != nil {
			return
		}
		bounded(t, "VerifyDigests", len(b), 2, buffers, func() { err = p.VerifyDigests(r) })
		code(t, err, "rpm_header", "rpm_digest")
		bounded(t, "CheckPaths", len(b), lists, small, func() { err = p.CheckPaths() })
		code(t, err, "rpm_header", "rpm_path")
		bounded(t, "Signatures", len(b), lists, buffers, func() { p.Signatures() })
		_, err = p.VerifySignature(openpgp.EntityList{key})
		code(t, err, "rpm_unsigned", "rpm_signature")
		for _, sign := range []func([]byte) ([]byte, error){p.Replace, p.Append} {
			head, err := sign(sig)
			code(t, err, "rpm_unsignable", "rpm_header")
			if err != nil {
				continue
			}
			signed := whole(t, head, p, b)
			q := read(t, signed)
			if !bytes.Equal(q.Header.Raw(), p.Header.Raw()) || !bytes.Equal(signed[len(head):], b[p.HeaderStart:]) {
				t.Fatal("the core has changed")
			}
			if _, err := q.VerifySignature(openpgp.EntityList{key}); err == nil {
				t.Fatal("the signature of something else is good")
			}
		}
	})
}

// window is what a decompressor of the payload may take, whatever its input's size: the
// dictionary that the input asks for. One of xz may ask for a larger one again and again.
func window(payload []byte) int {
	switch {
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		return 4*rpm.MaxWindow + 1<<20
	case bytes.HasPrefix(payload, []byte{0x28, 0xb5, 0x2f, 0xfd}), bytes.HasPrefix(payload, []byte{0x5d, 0, 0}):
		return rpm.MaxWindow + 2<<20
	case bytes.HasPrefix(payload, []byte("BZh")):
		return 8 << 20
	}
	return 256 << 10
}

// FuzzPayload reads payloads, packed by each compressor or not at all, of a package of plain
// files, of one with hard links, and of one of format 6.
func FuzzPayload(f *testing.F) {
	all := fixtures(f)
	var owners []*rpm.Package
	for _, name := range []string{"rpm-file-attrs-1.0-1.noarch.rpm", "rpm-hardlinks-1.0-1.noarch.rpm", "payload-test-0.1-w.ufdio.x86_64.rpm", "rpm-empty-0-0.x86_64.rpm"} {
		owners = append(owners, read(f, all[name]))
	}
	for _, b := range all {
		p := read(f, b)
		payload := b[p.HeaderEnd:]
		for i := range owners {
			f.Add(uint8(i), payload)
			if z, err := gzip.NewReader(bytes.NewReader(payload)); err == nil {
				open, err := io.ReadAll(z)
				if err != nil {
					f.Fatal(err)
				}
				f.Add(uint8(i), open)
			}
			if open, err := io.ReadAll(bzip2.NewReader(bytes.NewReader(payload))); err == nil {
				f.Add(uint8(i), open)
			}
		}
	}
	f.Fuzz(func(t *testing.T, owner uint8, b []byte) {
		const limit = 1 << 20
		o := owners[int(owner)%len(owners)]
		p := &rpm.Package{Lead: o.Lead, Sig: o.Sig, Header: o.Header, Size: int64(len(b))}
		var got int64
		var err error
		bounded(t, "Payload", len(b)+len(o.Header.Raw()), lists, window(b), func() {
			err = p.Payload(bytes.NewReader(b), limit, func(e rpm.PayloadFile, r io.Reader) error {
				if strings.HasPrefix(e.Name, "/") || strings.Contains("/"+e.Name+"/", "/../") || strings.ContainsRune(e.Name, 0) {
					t.Fatalf("an entry named %q", e.Name)
				}
				n, err := io.Copy(io.Discard, r)
				got += n
				return err
			})
		})
		code(t, err, "rpm_payload", "rpm_path")
		if got > limit {
			t.Fatalf("%d bytes from a payload bounded at %d", got, limit)
		}
		code(t, p.VerifyPayload(bytes.NewReader(b), limit), "rpm_payload", "rpm_path", "rpm_digest", "rpm_header")
		_, err = p.PayloadDigests(bytes.NewReader(b), limit)
		code(t, err, "rpm_payload", "rpm_path")
	})
}

// FuzzSignature reads OpenPGP packets, as a signer hands them in.
func FuzzSignature(f *testing.F) {
	p := read(f, fixtures(f)["rpm-basic-2.3.4-5.el9.noarch.rpm"])
	for _, b := range fixtures(f) {
		for _, s := range read(f, b).Signatures() {
			f.Add(s.Packet)
		}
	}
	f.Fuzz(func(t *testing.T, sig []byte) {
		if len(sig) > 1<<20 {
			return
		}
		var head []byte
		var err error
		bounded(t, "Replace", len(sig)+len(p.Sig.Raw()), lists, small, func() { head, err = p.Replace(sig) })
		code(t, err, "signature", "rpm_header")
		if err != nil {
			return
		}
		q := &rpm.Package{Lead: p.Lead, Header: p.Header}
		if q.Sig, _, err = rpm.ParseHeader(head[rpm.LeadSize:]); err != nil {
			t.Fatal(err)
		}
		if s := q.Signatures(); len(s) != 1 || !bytes.Equal(s[0].Packet, sig) {
			t.Fatalf("%d signatures after one was set", len(s))
		}
	})
}

// shared gives the first bytes of the shared test data's metadata that the pattern names,
// unpacked.
func shared(f *testing.F, pattern string, n int64) (out [][]byte) {
	files, err := filepath.Glob("../../../shared/data/cs9-*/repodata/" + pattern)
	if err != nil || len(files) == 0 {
		f.Fatalf("the shared test data is not at ../shared/data beside the project: %v", err)
	}
	for _, file := range files {
		r, err := os.Open(file)
		if err != nil {
			f.Fatal(err)
		}
		defer r.Close()
		o, done, err := rpm.Open(r)
		if err != nil {
			f.Fatal(err)
		}
		defer done()
		b, err := io.ReadAll(io.LimitReader(o, n))
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

// packed tells whether metadata would be unpacked before it is read. FuzzPayload does that.
func packed(b []byte) bool { return window(b) != window(nil) || bytes.HasPrefix(b, []byte{0x1f, 0x8b}) }

// FuzzPrimary reads primary.xml as text.
func FuzzPrimary(f *testing.F) {
	f.Add([]byte(primaryXML(goodPackage)))
	f.Add([]byte(primaryXML(strings.Replace(goodPackage, "<rpm:provides>", `<rpm:header-range start="1" end="2"/><rpm:recommends><rpm:entry name="(a if b)"/></rpm:recommends><rpm:enhances/><file type="dir">/etc/a&amp;</file><rpm:provides>`, 1))))
	for _, b := range shared(f, "*-primary.xml.gz", 40<<10) {
		n := bytes.LastIndex(b, []byte("</package>")) + len("</package>")
		f.Add(append(b[:n:n], "</metadata>"...))
		first := bytes.Index(b, []byte("</package>")) + len("</package>")
		f.Add(append(b[:first:first], "</metadata>"...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if packed(b) {
			return
		}
		check := func(p rpm.PrimaryPackage) error {
			if strings.HasPrefix(p.Href, "/") || strings.Contains("/"+p.Href+"/", "/../") || len(p.Sum) < 40 || p.Size < 0 || p.Name == "" {
				t.Fatalf("%+v", p)
			}
			return nil
		}
		n, m := 0, 0
		var err, err2 error
		bounded(t, "ReadPrimary", len(b), 2, buffers, func() {
			err = rpm.ReadPrimary(bytes.NewReader(b), func(p rpm.PrimaryPackage) error { n++; return check(p) })
		})
		code(t, err, "repodata", "repodata_location")
		bounded(t, "ReadPrimaryDeps", len(b), lists, buffers, func() {
			err2 = rpm.ReadPrimaryDeps(bytes.NewReader(b), func(p rpm.PrimaryPackage) error { m++; return check(p) })
		})
		code(t, err2, "repodata", "repodata_location")
		if err == nil && err2 == nil && n != m {
			t.Fatalf("%d packages, %d with dependencies", n, m)
		}
	})
}

func FuzzRepomd(f *testing.F) {
	for _, b := range shared(f, "repomd.xml", 1<<20) {
		f.Add(b)
	}
	f.Add(rpm.Repomd([]rpm.MetaFile{{Type: "primary", Name: "repodata/x", Sum: sum64}}, 1, 2))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ds []rpm.Data
		var err error
		bounded(t, "ReadRepomd", len(b), 2, buffers, func() { ds, err = rpm.ReadRepomd(b) })
		code(t, err, "repodata", "repodata_location")
		for _, d := range ds {
			if strings.HasPrefix(d.Href, "/") || strings.Contains("/"+d.Href+"/", "/../") || len(d.Sum) < 40 || d.Size < 0 || d.OpenSize < 0 {
				t.Fatalf("%+v", d)
			}
		}
	})
}

func FuzzComps(f *testing.F) {
	for _, b := range shared(f, "*comps*", 20<<10) {
		n := bytes.LastIndex(b, []byte("</group>")) + len("</group>")
		f.Add(append(b[:n:n], "</comps>"...))
	}
	f.Add([]byte(`<comps><group><id>g</id><name xml:lang="de">G</name><description xml:lang="cs">d</description></group><langpacks><match install="a-%s" name="b"/></langpacks><blacklist><package name="a" arch="b"/></blacklist><whitelist><ignoredep package="a" requires="b"/></whitelist><environment><optionlist><groupid default="true">o</groupid></optionlist></environment></comps>`))
	f.Add(rpm.Comps{Groups: []rpm.CompsGroup{{ID: "a", Packages: []rpm.CompsPackage{{Name: "y", Type: "conditional", Requires: "z"}}}},
		Categories:   []rpm.CompsCategory{{ID: "c", Order: 2, Groups: []string{"a"}}},
		Environments: []rpm.CompsEnvironment{{ID: "e", Groups: []string{"a"}, Options: []string{"b"}}}}.XML())
	f.Fuzz(func(t *testing.T, b []byte) {
		if packed(b) {
			return
		}
		var c rpm.Comps
		var err error
		bounded(t, "ReadComps", len(b), lists, buffers, func() { c, err = rpm.ReadComps(bytes.NewReader(b)) })
		code(t, err, "repodata")
		if err != nil {
			return
		}
		once := c.XML()
		wellFormed(t, once)
		again, err := rpm.ReadComps(bytes.NewReader(once))
		if err != nil || !bytes.Equal(again.XML(), once) {
			t.Fatalf("what was written reads otherwise: %v\n%s\n%s", err, once, again.XML())
		}
	})
}

// FuzzVersions reads names, versions and ranges.
func FuzzVersions(f *testing.F) {
	f.Add("bash-0:5.1.8-9.el9.x86_64", "1.0~rc1^2-1", "2:1.0-3", uint32(rpm.SenseEqual), uint32(rpm.SenseLess|rpm.SenseEqual))
	f.Add("Packages/a-b-1-1.noarch.rpm", "", "99999999999999999999:~^", uint32(0), uint32(0xffffffff))
	f.Fuzz(func(t *testing.T, name, a, b string, af, bf uint32) {
		var n rpm.NEVRA
		var err error
		bounded(t, "ParseNEVRA", len(name), 2, small, func() { n, err = rpm.ParseNEVRA(name) })
		code(t, err, "nevra")
		if err == nil {
			if m, err := rpm.ParseNEVRA(n.String()); err != nil || m != n {
				t.Fatalf("%q is %+v, and written back %+v: %v", name, n, m, err)
			}
			if strings.ContainsAny(n.File(), "/\x00\n ") {
				t.Fatalf("a file named %q", n.File())
			}
		}
		bounded(t, "CompareEVR", len(a)+len(b), 2, small, func() {
			if x, y := rpm.CompareEVR(a, b), rpm.CompareEVR(b, a); x != -y || rpm.CompareEVR(a, a) != 0 {
				t.Fatalf("%q %q: %d and %d", a, b, x, y)
			}
			rpm.SplitEVR(a)
			p, w := rpm.Dep{Name: "x", Flags: af, EVR: a}, rpm.Dep{Name: "x", Flags: bf, EVR: b}
			if rpm.Satisfies(p, w) != rpm.Satisfies(w, p) {
				t.Fatalf("%+v meets %+v one way only", p, w)
			}
		})
	})
}
