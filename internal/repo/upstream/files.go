package upstream

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"strings"

	"drover/internal/blob"
	"drover/internal/fault"
	"drover/internal/fetch"
	"drover/internal/rpm"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Bounds of one repository.
const (
	MaxMeta     = 512 << 20 // bytes of one metadata file
	maxOpenMeta = 4 << 30   // bytes that it unpacks to
	MaxPackage  = 16 << 30  // bytes of one package
	maxPackages = 200_000
	maxImage    = 4 << 30  // bytes of one file of an installation tree
	maxLoader   = 64 << 20 // bytes of one boot loader
	maxTreeinfo = 1 << 20
)

// File is a file of a repository that is in the store.
type File struct {
	Path   string
	Digest blob.Digest
	Size   int64
}

// Moved takes a missing or other file for an upstream that changed: its repomd.xml is read
// again.
func Moved(err error) error {
	if c := fault.Code(err); c == "fetch_missing" || c == "fetch_sum" || c == "fetch_changed" || c == "mirror_sum" {
		return fault.Unavailable("mirror_moved", "upstream is not whole").Wrap(err).Fix("it may be in the middle of an update; sync again later")
	}
	return err
}

// Fetch fetches files that repomd.xml or primary.xml names.
func (u *Upstream) Fetch(ctx context.Context, j fetch.Job) error {
	for _, w := range j.Wants {
		if w.Size > w.Max {
			return fault.TooLarge("mirror_size", "%.200q is said to have %d bytes, over %d", w.Href, w.Size, w.Max)
		}
	}
	return Moved(u.client.All(ctx, u.roots, j))
}

// One fetches one file.
func (u *Upstream) One(ctx context.Context, w fetch.Want, take func(*os.File) error) error {
	return u.client.File(ctx, u.roots, w, take)
}

// Metadata gets metadata files into the store; those that are there by their sha256 are not
// fetched again. What they unpack to is checked too.
func (u *Upstream) Metadata(ctx context.Context, blobs *blob.Store, files []rpm.Data) ([]File, error) {
	out := make([]File, len(files))
	j := fetch.Job{Blobs: blobs, Kept: func(context.Context, []int) error { return nil }}
	var todo []int
	for i, d := range files {
		if d.Algo == "sha256" {
			in, err := blobs.Renew(blob.Digest(strings.ToLower(d.Sum)))
			if err == nil && (d.Size == 0 || in.Size == d.Size) {
				out[i] = File{d.Href, in.Digest, in.Size}
				continue
			}
			if err != nil && fault.Code(err) != "blob_unknown" {
				return nil, err
			}
		}
		todo = append(todo, i)
		j.Wants = append(j.Wants, fetch.Want{Href: d.Href, Algo: d.Algo, Sum: d.Sum, Size: d.Size, Max: MaxMeta})
	}
	if len(todo) == 0 {
		return out, nil
	}
	j.Take = func(ctx context.Context, n int, f *os.File, b *blob.Batch) error {
		i := todo[n]
		if err := checkOpen(f, files[i]); err != nil {
			return err
		}
		d, size, err := b.Put(ctx, io.NewSectionReader(f, 0, MaxMeta+1), blob.PutOptions{Max: MaxMeta})
		out[i] = File{files[i].Href, d, size}
		return err
	}
	return out, u.Fetch(ctx, j)
}

// checkOpen compares what a metadata file unpacks to with what repomd.xml says of that.
func checkOpen(r io.Reader, d rpm.Data) error {
	if d.OpenSum == "" || strings.HasSuffix(d.Href, ".zck") {
		return nil // not told, or in a form that is copied and not read here
	}
	in, done, err := rpm.Open(r)
	if err != nil {
		return err
	}
	defer done()
	h, err := newHash(d.OpenAlgo)
	if err != nil {
		return err
	}
	n, err := io.Copy(h, io.LimitReader(in, maxOpenMeta+1))
	switch {
	case err != nil:
		return fault.Invalid("mirror_sum", "%.200q cannot be unpacked", d.Href).Wrap(err).Fix("it may be in the middle of an update: sync again later; else take another mirror of it")
	case n > maxOpenMeta:
		return fault.TooLarge("mirror_size", "%.200q unpacks to over %d bytes", d.Href, int64(maxOpenMeta))
	case d.OpenSize > 0 && n != d.OpenSize || !strings.EqualFold(hex.EncodeToString(h.Sum(nil)), d.OpenSum):
		return fault.Invalid("mirror_sum", "%.200q unpacks to something else than repomd.xml says", d.Href).Fix("it may be in the middle of an update: sync again later; else take another mirror of it")
	}
	return nil
}

func newHash(algo string) (hash.Hash, error) {
	h, err := fetch.NewHash(algo)
	if err != nil || algo == "" {
		return nil, fault.Invalid("mirror_algo", "the repository uses the checksum %.20q", algo)
	}
	return h, nil
}

// Packages reads which packages a primary.xml names.
func Packages(r io.Reader) (out []rpm.PrimaryPackage, err error) {
	seen := map[string]bool{}
	err = rpm.ReadPrimary(r, func(p rpm.PrimaryPackage) error {
		if len(out) >= maxPackages {
			return fault.TooLarge("mirror_size", "the repository has over %d packages", maxPackages)
		}
		if seen[p.Href] {
			return fault.Invalid("mirror_twice", "the repository names %.200q twice", p.Href)
		}
		seen[p.Href] = true
		p.Sum = strings.ToLower(p.Sum)
		out = append(out, p)
		return nil
	})
	return out, err
}

// Twice lists packages of one name and version that the repository has with different content.
func Twice(ps []rpm.PrimaryPackage) (out []string) {
	sums := map[rpm.NEVRA]string{}
	for _, p := range ps {
		if had, ok := sums[p.NEVRA]; ok && had != p.Sum {
			out = append(out, p.NEVRA.String())
		}
		sums[p.NEVRA] = p.Sum
	}
	return out
}

// CheckPackage reads a package file, of which the checksum in primary.xml is right, and checks it
// against its own digests, against primary.xml and, with keys, its signature.
func CheckPackage(f io.ReaderAt, size int64, w rpm.PrimaryPackage, keys openpgp.EntityList) (*rpm.Package, error) {
	q, err := rpm.Read(f, size)
	if err != nil {
		return nil, err
	}
	if err := q.VerifyDigests(f); err != nil {
		return nil, err
	}
	lie := func(what string, is, said any) error {
		return fault.Invalid("mirror_lie", "%.200q has the %s %v, but the metadata says %v", w.Href, what, is, said).Fix("the repository is broken or hostile: ask upstream")
	}
	n := q.NEVRA()
	source := ""
	if !q.Header.IsSource() {
		source = q.Header.String(rpm.SourceRPM)
	}
	switch {
	case n != w.NEVRA:
		return nil, lie("name", n, w.NEVRA)
	case w.Source != "" && w.Source != source:
		return nil, lie("source package", source, w.Source)
	case w.BuildTime != 0 && w.BuildTime != int64(q.Header.Int(rpm.BuildTime)):
		return nil, lie("build time", q.Header.Int(rpm.BuildTime), w.BuildTime)
	case w.HeaderEnd != 0 && (w.HeaderStart != q.HeaderStart || w.HeaderEnd != q.HeaderEnd):
		return nil, lie("header", q.HeaderStart, w.HeaderStart)
	}
	if len(keys) > 0 {
		return q, CheckSignature(q, w, keys)
	}
	return q, nil
}

// CheckSignature checks that a package is signed with one of the keys.
func CheckSignature(q *rpm.Package, w rpm.PrimaryPackage, keys openpgp.EntityList) error {
	if _, err := q.VerifySignature(keys); err != nil {
		return fault.Denied("mirror_package_signature", "%.200q is not signed with a pinned key", w.Href).Wrap(err).Fix("compare the pinned keys with upstream's; don't use the package before you know")
	}
	return nil
}

// Sum is a checksum, in hex, of what r yields.
func Sum(algo string, r io.Reader) (string, error) {
	h, err := newHash(algo)
	if err == nil {
		_, err = io.Copy(h, r)
	}
	if err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// loaders are what machines boot by network that .treeinfo does not name. They carry signatures
// of their own for Secure Boot.
func loaders() []string {
	return strings.Fields("EFI/BOOT/BOOTX64.EFI EFI/BOOT/BOOTAA64.EFI EFI/BOOT/grubx64.efi EFI/BOOT/grubaa64.efi EFI/BOOT/mmx64.efi EFI/BOOT/mmaa64.efi EFI/BOOT/grub.cfg")
}

// Tree gets the files of the installation tree: what .treeinfo names but discs, and the boot
// loaders beside it.
func (u *Upstream) Tree(ctx context.Context, blobs *blob.Store) ([]File, error) {
	name := ".treeinfo"
	a, err := u.client.Small(ctx, u.roots, name, maxTreeinfo, fetch.Mark{}, nil)
	if fault.Code(err) == "fetch_missing" {
		name = "treeinfo"
		a, err = u.client.Small(ctx, u.roots, name, maxTreeinfo, fetch.Mark{}, nil)
	}
	if fault.Code(err) == "fetch_missing" {
		return nil, fault.NotFound("mirror_tree", "upstream has no .treeinfo: there is no installation tree").Wrap(err).Fix("take the address that the installer is given, or set the mirror without --tree")
	}
	if err != nil {
		return nil, err
	}
	info, err := rpm.ReadTreeinfo(a.Data)
	if err != nil {
		return nil, err
	}
	d, err := blobs.PutBytes(a.Data)
	if err != nil {
		return nil, err
	}
	out := []File{{name, d, int64(len(a.Data))}}
	var todo []rpm.TreeFile
	j := fetch.Job{Blobs: blobs, Kept: func(context.Context, []int) error { return nil }}
	for _, f := range info.Files {
		if strings.HasSuffix(f.Path, ".iso") || strings.HasPrefix(f.Path, "repodata/") || f.Path == name {
			continue
		}
		if f.Algo == "sha256" {
			if in, err := blobs.Renew(blob.Digest(strings.ToLower(f.Sum))); err == nil {
				out = append(out, File{f.Path, in.Digest, in.Size})
				continue
			}
		}
		todo = append(todo, f)
		j.Wants = append(j.Wants, fetch.Want{Href: f.Path, Algo: f.Algo, Sum: f.Sum, Max: maxImage})
	}
	got := make([]File, len(todo))
	j.Take = func(ctx context.Context, i int, f *os.File, b *blob.Batch) error {
		d, size, err := b.Put(ctx, io.NewSectionReader(f, 0, maxImage+1), blob.PutOptions{Max: maxImage})
		got[i] = File{todo[i].Path, d, size}
		return err
	}
	if len(todo) > 0 {
		if err := u.Fetch(ctx, j); err != nil {
			return nil, err
		}
	}
	out = append(out, got...)
	for _, path := range loaders() {
		err := u.client.File(ctx, u.roots, fetch.Want{Href: path, Max: maxLoader}, func(f *os.File) error {
			d, size, err := blobs.Put(ctx, io.NewSectionReader(f, 0, maxLoader+1), blob.PutOptions{Max: maxLoader})
			out = append(out, File{path, d, size})
			return err
		})
		if c := fault.Code(err); err != nil && c != "fetch_missing" && c != "fetch_denied" {
			return nil, err
		}
	}
	return out, u.Still(ctx, name, a.Data)
}

// Still makes sure that a small file is what it was when the copying began.
func (u *Upstream) Still(ctx context.Context, name string, was []byte) error {
	_, err := u.client.Small(ctx, u.roots, name, int64(max(len(was), 1)), fetch.Mark{}, func(b []byte) error {
		if !bytes.Equal(b, was) {
			return errors.New("it changed while the repository was copied")
		}
		return nil
	})
	if fault.Code(err) == "fetch_size" {
		return fault.Unavailable("mirror_moved", "%s changed while the repository was copied", name)
	}
	return Moved(err)
}
