package build_test

import (
	"bytes"
	"crypto/md5"  //nolint:gosec // as the format has it
	"crypto/sha1" //nolint:gosec // likewise
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"drover/internal/blob"
	"drover/internal/build"
	"drover/internal/build/wire"
	"drover/internal/fault"
	"drover/internal/rpm"
)

// forge changes the main header of an RPM by text of the same length and makes its digests fit
// again: what a hostile builder can do.
func forge(t *testing.T, data []byte, from, to string) []byte {
	t.Helper()
	p, err := rpm.Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if len(from) != len(to) || !bytes.Contains(p.Header.Raw(), []byte(from)) {
		t.Fatalf("%q cannot become %q", from, to)
	}
	return digests(t, data, bytes.ReplaceAll(p.Header.Raw(), []byte(from), []byte(to)))
}

// digests puts another main header of the same size into an RPM, with digests that fit.
func digests(t *testing.T, data, header []byte) []byte {
	t.Helper()
	p, err := rpm.Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	out := bytes.Clone(data)
	copy(out[p.HeaderStart:], header)
	sig := out[:p.HeaderStart]
	was := p.Header.Raw()
	for _, d := range [][2][]byte{
		{hexOf(sha1sum(was)), hexOf(sha1sum(header))},
		{hexOf(sha256sum(was)), hexOf(sha256sum(header))},
		{md5sum(data[p.HeaderStart:]), md5sum(out[p.HeaderStart:])},
	} {
		copy(sig, bytes.ReplaceAll(sig, d[0], d[1]))
	}
	return out
}

func hexOf(b []byte) []byte     { return []byte(hex.EncodeToString(b)) }
func sha1sum(b []byte) []byte   { h := sha1.Sum(b); return h[:] } //nolint:gosec // as the format has it
func sha256sum(b []byte) []byte { h := sha256.Sum256(b); return h[:] }
func md5sum(b []byte) []byte    { h := md5.Sum(b); return h[:] } //nolint:gosec // as the format has it

// counts makes the count of the header's second entry huge.
func counts(t *testing.T, data []byte) []byte {
	t.Helper()
	p, err := rpm.Read(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	h := bytes.Clone(p.Header.Raw())
	binary.BigEndian.PutUint32(h[16+16+12:], 0xfffffff0)
	return digests(t, data, h)
}

// TestLies hands in what an honest builder would not. Each is refused with the builder's fault,
// is tried again elsewhere, and leaves nothing.
func TestLies(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		src, bin := p.srpm(t), p.built(t, "x86_64")
		main, sub := bin[slices.IndexFunc(bin, func(f rpmFile) bool { return strings.HasSuffix(f.name, "x86_64.rpm") })], bin[slices.IndexFunc(bin, func(f rpmFile) bool { return strings.HasSuffix(f.name, "noarch.rpm") })]
		flipped := bytes.Clone(main.data)
		flipped[len(flipped)-20] ^= 0x40
		second := newPkg("hello", "2%{?dist}", "").built(t, "x86_64")[0]
		other := newPkg("other", "1%{?dist}", "").built(t, "x86_64")[0]
		content := blob.Of([]byte("data of hello\n")).String()
		with := func(files map[string]string) rpmFile {
			all := maps.Clone(p.files)
			maps.Copy(all, files)
			return rpmbuild(t, all, "hello.spec", "-bs")[0]
		}
		named := func(data []byte) []rpmFile { return []rpmFile{{main.name, data}} }
		for _, c := range []struct {
			what   string
			source bool // of the source task
			files  []rpmFile
			change func(*wire.Finish)
			code   string
		}{
			{"a truncated RPM", false, named(main.data[:len(main.data)-100]), nil, "rpm_digest"},
			{"an RPM cut in its header", false, named(main.data[:600]), nil, "rpm_header"},
			{"no RPM", false, named([]byte("#!/bin/sh\n")), nil, "rpm_header"},
			{"an empty file", false, named(nil), nil, "rpm_header"},
			{"a changed payload", false, named(flipped), nil, "rpm_digest"},
			{"an RPM under another's name", false, []rpmFile{main}, func(f *wire.Finish) { f.Files[0].Name = "hello-1.0-1.t.aarch64.rpm" }, "result_name"},
			{"a header with huge counts", false, named(counts(t, main.data)), nil, "rpm_header"},
			{"a path that leads out", false, named(forge(t, main.data, "/usr/share/hello/", "/usr/../../etc/d/")), nil, "rpm_path"},
			{"a relative path", false, named(forge(t, main.data, "/usr/share/hello/", "usr/sharee/hello/")), nil, "rpm_path"},
			{"a header of another payload", false, named(forge(t, main.data, content, strings.Repeat("0", 64))), nil, "rpm_digest"},
			{"an RPM of another package", false, []rpmFile{other}, nil, "result_source"},
			{"an RPM of another package under the right name", false, named(other.data), nil, "result_name"},
			{"an RPM of another release", false, []rpmFile{second}, nil, "result_source"},
			{"an RPM of another arch", false, []rpmFile{p.built(t, "aarch64")[0]}, nil, "result_arch"},
			{"the source RPM as a result", false, []rpmFile{src}, nil, "result_arch"},
			{"nothing", false, nil, nil, "result_files"},
			{"a file twice", false, []rpmFile{main, main}, nil, "result_files"},
			{"too many files", false, []rpmFile{main}, func(f *wire.Finish) {
				for i := range 2001 {
					f.Files = append(f.Files, wire.File{Name: fmt.Sprint(i), Digest: f.Files[0].Digest})
				}
			}, "result_files"},
			{"a file name with a path", false, []rpmFile{main}, func(f *wire.Finish) { f.Files[0].Name = "../../" + main.name }, "result_name"},
			{"a digest that is none", false, []rpmFile{main}, func(f *wire.Finish) { f.Files[0].Digest = "../../../etc/passwd" }, "digest_invalid"},
			{"no buildroot", false, []rpmFile{main}, func(f *wire.Finish) { f.Before = []wire.Pkg{} }, "root_size"},
			{"an endless buildroot", false, []rpmFile{main}, func(f *wire.Finish) { f.After = make([]wire.Pkg, 20_001) }, "root_size"},
			{"a buildroot of nonsense", false, []rpmFile{main}, func(f *wire.Finish) { f.Before = []wire.Pkg{{NEVRA: "a b\nc", Header: strings.Repeat("0", 64)}} }, "root_package"},
			{"a buildroot without headers", false, []rpmFile{main}, func(f *wire.Finish) { f.After = []wire.Pkg{{NEVRA: "bash-5-1.x86_64", Header: "abc"}} }, "root_package"},
			{"a source RPM with a changed file", true, []rpmFile{with(map[string]string{"data.txt": "other data\n"})}, nil, "result_source"},
			{"a source RPM with a changed spec", true, []rpmFile{with(map[string]string{"hello.spec": p.files["hello.spec"] + "# evil\n"})}, nil, "result_source"},
			{"a source RPM with one file more", true, []rpmFile{with(map[string]string{"x.txt": "x", "hello.spec": strings.Replace(p.files["hello.spec"], "%description", "Source1: x.txt\n%description", 1)})}, nil, "result_source"},
			{"a source RPM of another package", true, []rpmFile{newPkg("other", "1%{?dist}", "").srpm(t)}, nil, "result_name"},
			{"a binary RPM as source", true, []rpmFile{main}, nil, "result_arch"},
			{"two source RPMs", true, []rpmFile{src, newPkg("hello", "2%{?dist}", "").srpm(t)}, nil, "result_source"},
		} {
			x := h.join("x")
			var b build.Build
			if c.source {
				b = h.submit(build.Request{Target: "one", Repo: "rpms/hello", Scratch: true})
			} else {
				b = x.begin(p, build.Request{Scratch: true})
			}
			before := h.whole(b.ID)
			task := x.take()
			for _, f := range c.files {
				h.ok(x.upload(task, sum(f.data), f.data))
			}
			f := result(task, c.files...)
			if c.change != nil {
				c.change(&f)
			}
			h.ok(x.finish(task, f))
			tt, err := h.s.Build.Task(t.Context(), task.ID)
			h.ok(err)
			w := h.whole(b.ID)
			if tt.State != build.TaskFree || tt.Code != c.code || !strings.Contains(tt.Message, "refused") || w.State != build.Building {
				t.Errorf("%s: the task is %s with %q, not %q: %s", c.what, tt.State, tt.Code, c.code, tt.Message)
			}
			if len(w.RPMs) != len(before.RPMs) {
				t.Errorf("%s: it left packages: %+v", c.what, w.RPMs)
			}
			h.until(c.what+": the lease's files are gone", h.empty)
			h.ok(h.admin.Call(t.Context(), "POST", fmt.Sprintf("/api/v1/builds/%d/cancel", b.ID), map[string]string{}, nil))
		}

		// A builder that lies each time fails the build, with its own name in the message.
		x := h.join("x")
		b := x.begin(p, build.Request{})
		for range 3 {
			h.ok(x.hand(x.take(), second))
		}
		if w := h.whole(b.ID); w.State != build.Failed || w.Code != "result_source" || w.Tasks[2].Attempt != 3 || !strings.Contains(w.Remedy, "builder x") {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		if bs, err := h.s.Release.Content(t.Context(), "one", ""); err != nil || len(bs) != 0 {
			t.Errorf("the tag holds %v, %v", bs, err)
		}

		// A file under a wrong digest is refused as it comes; one that never came is asked for.
		b = x.begin(p, build.Request{})
		task := x.take()
		h.refused(x.upload(task, sum([]byte("other")), main.data), "digest_mismatch")
		h.refused(x.upload(task, "..%2f..%2fetc%2fpasswd", main.data), "digest_invalid")
		h.refused(x.finish(task, result(task, main)), "file_missing")
		h.ok(x.upload(task, sum(main.data), main.data))
		h.ok(x.upload(task, sum(main.data), main.data)) // again is harmless
		h.ok(x.upload(task, sum(sub.data), sub.data))
		h.ok(x.finish(task, result(task, main, sub)))
		if w := h.whole(b.ID); w.State != build.Complete || w.Tasks[2].Attempt != 1 {
			t.Errorf("%s %+v", states(w), w.Build)
		}

		// A package that another build makes already is refused, though the NVR is new.
		thief := pkg{"thief", map[string]string{"thief.spec": strings.ReplaceAll(specOf("thief", "1%{?dist}", ""), "%package sub", "%package -n hello-sub"), "data.txt": "x"}}
		for a, with := range map[string]string{"%description sub": "%description -n hello-sub", "%files sub": "%files -n hello-sub"} {
			thief.files["thief.spec"] = strings.ReplaceAll(thief.files["thief.spec"], a, with)
		}
		h.push("thief", thief.files)
		b = x.begin(thief, build.Request{})
		h.ok(x.hand(x.take(), thief.built(t, "x86_64")...))
		if w := h.whole(b.ID); w.State != build.Failed || w.Code != "rpm_exists" || !strings.Contains(w.Message, "hello-sub-1.0-1.t.noarch.rpm") {
			t.Errorf("%s %+v", states(w), w.Build)
		}
	})
}

func TestLogs(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		h.submit(build.Request{Target: "one", Repo: "rpms/hello"})
		task := x.take()
		h.ok(x.log(task, "build.log", 0, "one\n"))
		h.refused(x.log(task, "build.log", 5, "gap\n"), "log_gap")
		h.refused(x.log(task, "build.log", -1, "gap\n"), "log_gap")
		h.ok(x.log(task, "build.log", 0, "one\ntwo\n")) // repeated bytes are passed over
		h.ok(x.log(task, "build.log", 2, "e\n"))
		if got, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log", task.ID)); err != nil || got != "one\ntwo\n" {
			t.Errorf("%q %v", got, err)
		}
		if got, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/build.log?offset=4", task.ID)); err != nil || got != "two\n" {
			t.Errorf("%q %v", got, err)
		}
		for _, name := range []string{"..%2fx.log", "x", ".log", "X.log", "build.log.1", strings.Repeat("a", 40) + ".log"} {
			h.refused(x.log(task, name, 0, "x"), "log_name")
		}
		h.refused(x.log(task, "a%00.log", 0, "x"), "text")
		// Over its size: the rest is refused, what is there stays.
		file := filepath.Join(h.dir, "build", "logs", fmt.Sprintf("%d.%d", task.ID, task.Fence), "root.log")
		h.ok(os.WriteFile(file, nil, 0o600))
		h.ok(os.Truncate(file, 256<<20-4))
		h.refused(x.log(task, "root.log", 256<<20-4, "12345"), "log_size")
		if st, err := os.Stat(file); err != nil || st.Size() != 256<<20 {
			t.Errorf("%v %v", st, err)
		}
		h.ok(os.Truncate(file, 0))
		// Too many of them.
		for i := range 14 {
			h.ok(x.log(task, fmt.Sprintf("x%d.log", i), 0, "x"))
		}
		h.refused(x.log(task, "more.log", 0, "x"), "log_count")
		h.ok(x.fail(task, false, "build_failed"))
		tt, err := h.s.Build.Task(t.Context(), task.ID)
		h.ok(err)
		if len(tt.Logs) != 16 {
			t.Errorf("%d logs: %+v", len(tt.Logs), tt.Logs)
		}
		if _, err := get(t, h.pat, fmt.Sprintf("/api/v1/tasks/%d/logs/none.log", task.ID)); fault.Code(err) != "log_unknown" {
			t.Error(err)
		}
	})
}

// TestNoarch: what is noarch must be the same from every arch, but for when it was made.
func TestNoarch(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x, a := h.join("x"), h.join("a", "aarch64")
		later := func(arch string) []rpmFile {
			return p.built(t, arch, "--define", "use_source_date_epoch_as_buildtime 1", "--define", "distribution Later")
		}
		b := x.begin(p, build.Request{Target: "two", Scratch: true})
		bx, ba := x.take(), a.take()
		h.ok(x.hand(bx, p.built(t, "x86_64")...))
		h.ok(a.hand(ba, later("aarch64")...))
		if w := h.whole(b.ID); w.State != build.Complete || len(w.RPMs) != 4 {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		b = x.begin(p, build.Request{Target: "two", Scratch: true})
		bx, ba = x.take(), a.take()
		h.ok(x.hand(bx, p.built(t, "x86_64")...))
		h.ok(a.hand(ba, p.built(t, "aarch64", "--define", "note not the ")...))
		if w := h.whole(b.ID); w.State != build.Failed || w.Code != "noarch_differs" || !strings.Contains(w.Message, "hello-sub-1.0-1.t.noarch.rpm differs between arches: /usr/share/hello-sub/text has other content") || w.Remedy == "" {
			t.Errorf("%s %+v", states(w), w.Build)
		}
	})
}

func TestSourceRPM(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		src := p.srpm(t)
		x := h.join("x")
		up := func(data []byte) (string, error) {
			resp, err := h.pat.Do(t.Context(), "POST", "/api/v1/srpms", nil, bytes.NewReader(data))
			if err != nil {
				return "", err
			}
			defer resp.Body.Close()
			return sum(data), nil
		}
		blobs := func() (n int) {
			for _, err := range h.s.Blobs.List() {
				h.ok(err)
				n++
			}
			return n
		}
		n := blobs()
		for what, c := range map[string]struct {
			data []byte
			code string
		}{
			"nothing":               {nil, "rpm_header"},
			"no RPM":                {[]byte("hello"), "rpm_header"},
			"a binary RPM":          {p.built(t, "x86_64")[0].data, "srpm"},
			"a cut one":             {src.data[:len(src.data)-9], "rpm_digest"},
			"huge counts":           {counts(t, src.data), "rpm_header"},
			"a path that leads out": {forge(t, src.data, "\x00hello.spec\x00", "\x00../hel.spe\x00"), "rpm_path"},
		} {
			if _, err := up(c.data); fault.Code(err) != c.code {
				t.Errorf("%s: %v, not %s", what, err, c.code)
			}
		}
		if got := blobs(); got != n {
			t.Errorf("refused uploads left %d blobs", got-n)
		}
		d, err := up(src.data)
		h.ok(err)
		b := h.submit(build.Request{Target: "one", SRPM: blob.Digest(d)})
		if b.Package != "hello" || b.Commit != "" {
			t.Errorf("%+v", b)
		}
		task := x.take()
		if task.Method != wire.MethodRebuild || task.Tree || len(task.Inputs) != 1 {
			t.Errorf("%+v", task)
		}
		_, err = x.tree(task)
		h.refused(err, "tree_unknown")
		_, err = x.input(task, sum([]byte("other")))
		h.refused(err, "input_unknown")
		if in, err := x.input(task, d); err != nil || sum(in) != d {
			t.Errorf("%d bytes, %v", len(in), err)
		}
		// What comes back must hold the same files.
		h.ok(x.hand(task, rpmbuild(t, map[string]string{"hello.spec": p.files["hello.spec"], "data.txt": "changed\n"}, "hello.spec", "-bs")[0]))
		if w := h.whole(b.ID); w.Tasks[1].Code != "result_source" || w.State != build.Building {
			t.Errorf("%+v", w.Tasks[1])
		}
		h.ok(x.hand(x.take(), src))
		h.ok(x.hand(x.take(), p.built(t, "x86_64")...))
		if w := h.whole(b.ID); w.State != build.Complete || w.NVR != "hello-1.0-1.t" {
			t.Errorf("%s %+v", states(w), w.Build)
		}
		// Bytes that go into the store by another door are no source RPM for that.
		raw, err := h.s.Blobs.PutBytes(src.data[:len(src.data)-9])
		h.ok(err)
		err = h.pat.Call(t.Context(), "POST", "/api/v1/builds", build.Request{Target: "one", SRPM: raw}, nil)
		h.refused(err, "rpm_digest")
		// A source RPM whose blob is lost fails its build and holds up nothing.
		lost := forge(t, src.data, "\x00Test.\x00", "\x00Lost.\x00")
		d, err = up(lost)
		h.ok(err)
		b = h.submit(build.Request{Target: "one", SRPM: blob.Digest(d), Scratch: true, Priority: 1})
		after := h.submit(build.Request{Target: "one", SRPM: blob.Digest(sum(src.data)), Scratch: true})
		h.ok(h.s.Blobs.Delete(blob.Digest(d)))
		task = x.take()
		if tt, err := h.s.Build.Task(t.Context(), task.ID); err != nil || tt.Build != after.ID {
			t.Errorf("%+v %v", tt, err)
		}
		if w := h.whole(b.ID); w.State != build.Failed || w.Code != "blob_unknown" {
			t.Errorf("%+v", w.Build)
		}
	})
}

// TestVerify rebuilds a build and compares.
func TestVerify(t *testing.T) {
	each(t, func(h *house) {
		p := newPkg("hello", "1%{?dist}", "")
		h.push("hello", p.files)
		x := h.join("x")
		b := x.begin(p, build.Request{})
		h.ok(x.hand(x.take(), p.built(t, "x86_64")...))
		// A later push changes nothing of what is rebuilt.
		h.push("hello", map[string]string{"data.txt": "later\n"})
		verify := func(files []rpmFile) *build.Verdict {
			t.Helper()
			var v build.Build
			h.ok(h.pat.Call(t.Context(), "POST", "/api/v1/builds/hello-1.0-1.t/verify", nil, &v))
			task := x.take()
			if tree, err := x.tree(task); err != nil || !strings.Contains(string(tree), "data of hello") {
				t.Errorf("%d bytes, %v", len(tree), err)
			}
			h.ok(x.hand(task, p.srpm(t)))
			h.ok(x.hand(x.take(), files...))
			w := h.whole(v.ID)
			if w.State != build.Complete || w.Verifies != b.ID || !w.Scratch || w.Verdict == nil {
				t.Fatalf("%s %+v", states(w), w.Build)
			}
			return w.Verdict
		}
		if v := verify(p.built(t, "x86_64")); !v.Same || !v.Roots || len(v.Differs) != 0 {
			t.Errorf("%+v", v)
		}
		v := verify(p.built(t, "x86_64", "--define", "note not the "))
		if v.Same || !slices.Contains(v.Differs, "hello-sub-1.0-1.t.noarch.rpm: /usr/share/hello-sub/text has other content") {
			t.Errorf("%+v", v)
		}
		v = verify(p.built(t, "x86_64")[:1])
		if v.Same || len(v.Differs) != 1 || !strings.HasSuffix(v.Differs[0], " is missing") {
			t.Errorf("%+v", v)
		}
		if err := h.pat.Call(t.Context(), "POST", "/api/v1/builds/4711/verify", nil, nil); fault.Code(err) != "build_unknown" {
			t.Error(err)
		}
	})
}
