package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"vmm/block"
	"vmm/block/image"
	"vmm/block/qcow2"
	"vmm/cmd/vmm/internal/console"
)

const imageHelp = `Usage: vmm image info [-f FORMAT] [-output human|json] FILE
       vmm image create [-f FORMAT] [-o OPTION=VALUE,...] [-b FILE [-F FORMAT]] FILE [SIZE]
       vmm image convert [-p] [-f FORMAT] [-O FORMAT] [-o OPTION=VALUE,...] FILE NEW
       vmm image check [-f FORMAT] [-r leaks|all] [-output human|json] FILE
       vmm image resize [-f FORMAT] [-shrink] FILE [+|-]SIZE

Disk images, in the words of qemu-img. A FORMAT is raw or qcow2; without -f it is
found out, and what is made is raw. A SIZE is in bytes, or in units of K, M, G or T.

  -f FORMAT     the file's format
  -O FORMAT     the new file's format (default raw)
  -b FILE       the backing file: what is read where the new image has nothing of its own
  -F FORMAT     the backing file's format
  -o OPTIONS    of a new qcow2 image: cluster_size=SIZE (default 64K), refcount_bits=N (16),
                compat=0.10|1.1, lazy_refcounts=on, compression_type=zlib|zstd,
                preallocation=off|metadata
  -r WHAT       repair leaks, or all mistakes
  -shrink       allow the disk to become smaller, and what is behind its end to be lost
  -output FORM  human or json
  -p            show the progress
  -q            print nothing but errors

Exit status: 0 when all is well, 1 when something failed, 2 for a mistake in the flags;
of check also 2 when the image is corrupt, 3 when it has leaks, 63 when it is raw.
`

// Exit statuses of "vmm image check", which are qemu-img's.
const (
	statusCorrupt     = 2
	statusLeaks       = 3
	statusUncheckable = 63
)

// compatV2 is what qemu-img calls version 2 of the format.
const compatV2 = "0.10"

// imageOptions are the flags of all image commands; each command allows some.
type imageOptions struct {
	format, newFormat string
	backing           string
	backingFormat     string
	options           string
	repair            string
	output            string
	shrink            bool
	progress, quiet   bool
	help              bool
}

// imageCommand is one of the commands.
type imageCommand struct {
	flags    string // allowed, with spaces between
	least    int    // operands
	most     int
	operands string
	run      func(p *process, o *imageOptions, operands []string) (int, error)
}

var imageCommands = map[string]imageCommand{
	"info":    {"f output", 1, 1, "FILE", (*process).imageInfo},
	"create":  {"f o b F q", 1, 2, "FILE [SIZE]", (*process).imageCreate},
	"convert": {"f O o p q", 2, 2, "FILE NEW", (*process).imageConvert},
	"check":   {"f r output q", 1, 1, "FILE", (*process).imageCheck},
	"resize":  {"f shrink q", 2, 2, "FILE SIZE", (*process).imageResize},
}

// image is the command "image".
func (p *process) image(args []string) (int, error) {
	if len(args) == 0 || slices.Contains([]string{"help", "-help", "--help", "-h"}, args[0]) {
		_, err := p.stdout.WriteString(imageHelp)
		return statusOK, err
	}
	command, known := imageCommands[args[0]]
	if !known {
		return 0, mistakef(`image %s: no such command (see "vmm image -help")`, args[0])
	}
	var o imageOptions
	flags := o.flags(strings.Fields(command.flags))
	operands, err := parseArguments(flags, spreadResize(args[0], args[1:]))
	switch {
	case err != nil:
		return 0, mistakef("image %s: %w", args[0], err)
	case o.help:
		_, err := p.stdout.WriteString(imageHelp)
		return statusOK, err
	case len(operands) < command.least || len(operands) > command.most:
		return 0, mistakef(`image %s: needs %s (see "vmm image -help")`, args[0], command.operands)
	}
	for _, format := range []string{o.format, o.newFormat, o.backingFormat} {
		if !slices.Contains([]string{"", image.Raw, image.Qcow2}, format) {
			return 0, mistakef("image %s: format %s: not raw or qcow2", args[0], format)
		}
	}
	status, err := command.run(p, &o, operands)
	if err != nil {
		return 0, fmt.Errorf("image %s: %w", args[0], err)
	}
	return status, nil
}

// spreadResize lets "resize FILE -1G" be: what looks like a flag there is a size.
func spreadResize(command string, args []string) []string {
	if n := len(args); command == "resize" && n > 0 && len(args[n-1]) > 1 && args[n-1][0] == '-' && args[n-1][1] >= '0' && args[n-1][1] <= '9' {
		return slices.Concat(args[:n-1], []string{"--", args[n-1]})
	}
	return args
}

// flags makes those that are allowed.
func (o *imageOptions) flags(allowed []string) *pflag.FlagSet {
	f := pflag.NewFlagSet("image", pflag.ContinueOnError)
	text := map[string]*string{
		"f": &o.format, "O": &o.newFormat, "b": &o.backing, "F": &o.backingFormat, "o": &o.options, "r": &o.repair, "output": &o.output,
	}
	switches := map[string]*bool{"shrink": &o.shrink, "p": &o.progress, "q": &o.quiet}
	for _, name := range allowed {
		if to := text[name]; to != nil {
			f.StringVar(to, name, "", "")
			continue
		}
		f.BoolVar(switches[name], name, false, "")
	}
	f.BoolVar(&o.help, "help", false, "")
	return f
}

// open opens an image for a command; the error names it.
func (o *imageOptions) open(path string, readOnly bool) (*image.Image, error) {
	i, err := image.Open(path, image.Options{Format: o.format, ReadOnly: readOnly})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, bare(err))
	}
	return i, nil
}

// say prints what -q suppresses.
func (p *process) say(o *imageOptions, format string, args ...any) {
	if !o.quiet {
		fmt.Fprintf(p.stdout, format, args...)
	}
}

// imageDescription is what info prints, under the names that qemu-img has for it.
type imageDescription struct {
	Filename       string         `json:"filename"`
	Format         string         `json:"format"`
	VirtualSize    int64          `json:"virtual-size"`
	ActualSize     int64          `json:"actual-size"`
	ClusterSize    int64          `json:"cluster-size,omitempty"`
	Backing        string         `json:"backing-filename,omitempty"`
	FullBacking    string         `json:"full-backing-filename,omitempty"`
	BackingFormat  string         `json:"backing-filename-format,omitempty"`
	FormatSpecific *imageSpecific `json:"format-specific,omitempty"`
	Snapshots      []imageSnap    `json:"snapshots,omitempty"`
}

type imageSpecific struct {
	Type string    `json:"type"`
	Data imageData `json:"data"`
}

type imageData struct {
	Compat        string `json:"compat"`
	Compression   string `json:"compression-type"`
	LazyRefcounts bool   `json:"lazy-refcounts"`
	RefcountBits  int    `json:"refcount-bits"`
	Corrupt       bool   `json:"corrupt"`
	ExtendedL2    bool   `json:"extended-l2"`
}

type imageSnap struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

func (p *process) imageInfo(o *imageOptions, operands []string) (int, error) {
	d, err := describe(o, operands[0])
	if err != nil {
		return 0, err
	}
	switch o.output {
	case "", "human":
		_, err = p.stdout.WriteString(d.String())
	case "json":
		err = printJSON(p.stdout, d)
	default:
		err = mistakef("-output %s: not human or json", o.output)
	}
	return statusOK, err
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "    ")
	return e.Encode(v)
}

// describe looks at one file; those behind it need not be there.
func describe(o *imageOptions, path string) (*imageDescription, error) {
	f, err := block.Open(path, block.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	d := &imageDescription{Filename: path, Format: o.format, VirtualSize: f.Size()}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.ActualSize = st.Blocks * 512
	if d.Format == "" {
		if d.Format, err = image.Probe(f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	if d.Format == image.Raw {
		return d, nil
	}
	q, err := qcow2.Open(f, qcow2.Options{ReadOnly: true, Backing: func(string, string) (qcow2.Backing, error) { return nil, nil }})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	info, err := q.Info()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.VirtualSize, d.ClusterSize = q.Size(), info.ClusterSize
	if d.Backing, d.BackingFormat = q.BackingFile(); d.Backing != "" {
		if d.FullBacking, err = image.BackingPath(path, d.Backing); err != nil {
			d.FullBacking = ""
		}
	}
	compat := "1.1"
	if info.Version == 2 {
		compat = compatV2
	}
	d.FormatSpecific = &imageSpecific{image.Qcow2, imageData{compat, info.Compression.String(), info.LazyRefcounts, info.RefcountBits, info.Corrupt, false}}
	for _, s := range info.Snapshots {
		d.Snapshots = append(d.Snapshots, imageSnap{s.ID, s.Name})
	}
	return d, nil
}

func (d *imageDescription) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "image: %s\nfile format: %s\nvirtual size: %s (%d bytes)\ndisk size: %s\n",
		d.Filename, d.Format, sizeText(d.VirtualSize), d.VirtualSize, sizeText(d.ActualSize))
	if d.Format == image.Raw {
		return b.String()
	}
	fmt.Fprintf(&b, "cluster_size: %d\n", d.ClusterSize)
	if d.Backing != "" {
		fmt.Fprintf(&b, "backing file: %s", d.Backing)
		if d.FullBacking != "" && d.FullBacking != d.Backing {
			fmt.Fprintf(&b, " (actual path: %s)", d.FullBacking)
		}
		b.WriteByte('\n')
		if d.BackingFormat != "" {
			fmt.Fprintf(&b, "backing file format: %s\n", d.BackingFormat)
		}
	}
	if len(d.Snapshots) > 0 {
		fmt.Fprintf(&b, "Snapshot list:\n%-9s %s\n", "ID", "TAG")
		for _, s := range d.Snapshots {
			fmt.Fprintf(&b, "%-9s %s\n", s.ID, s.Name)
		}
	}
	data := d.FormatSpecific.Data
	fmt.Fprintf(&b, "Format specific information:\n    compat: %s\n    compression type: %s\n", data.Compat, data.Compression)
	if data.Compat == compatV2 { // which has no feature bits
		fmt.Fprintf(&b, "    refcount bits: %d\n", data.RefcountBits)
		return b.String()
	}
	fmt.Fprintf(&b, "    lazy refcounts: %t\n    refcount bits: %d\n    corrupt: %t\n    extended l2: %t\n",
		data.LazyRefcounts, data.RefcountBits, data.Corrupt, data.ExtendedL2)
	return b.String()
}

// sizeText is a size as people say it, with three digits.
func sizeText(n int64) string {
	f, unit := float64(n), 0
	for ; f >= 999.5 && unit < 6; unit++ {
		f /= 1024
	}
	return strconv.FormatFloat(f, 'g', 3, 64) + " " + []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}[unit]
}

// imageSize reads a size in bytes, or in units of 1024.
func imageSize(s string) (int64, error) {
	digits, unit := strings.TrimSuffix(strings.TrimSuffix(strings.ToUpper(s), "IB"), "B"), int64(1)
	if n := len(digits); n > 0 {
		if i := strings.IndexByte("KMGTPE", digits[n-1]); i >= 0 {
			digits, unit = digits[:n-1], 1<<(10*(i+1))
		}
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f < 0 || f*float64(unit) > 1<<62 {
		return 0, errors.New("not a size (use for example 512M or 20G)")
	}
	if whole, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return (whole*unit + 511) &^ 511, nil
	}
	return (int64(f*float64(unit)) + 511) &^ 511, nil
}

// createOptions reads -o.
func (o *imageOptions) createOptions() (c qcow2.CreateOptions, preallocate bool, err error) {
	if o.options == "" {
		return c, false, nil
	}
	set, err := parseSettings(","+o.options, "cluster_size", "refcount_bits", "compat", "lazy_refcounts", "compression_type", "preallocation", "backing_file", "backing_fmt", "size")
	if err != nil {
		return c, false, mistakef("-o %s: %w", o.options, err)
	}
	for key, value := range set.values {
		bad := false
		switch key {
		case "cluster_size":
			c.ClusterSize, err = imageSize(value)
			bad = err != nil
		case "refcount_bits":
			c.RefcountBits, err = strconv.Atoi(value)
			bad = err != nil || c.RefcountBits < 1
		case "compat":
			c.Version = map[string]int{compatV2: 2, "v2": 2, "1.1": 3, "v3": 3}[value]
			bad = c.Version == 0
		case "lazy_refcounts":
			bad = value != "on" && value != "off"
			c.LazyRefcounts = value == "on"
		case "compression_type":
			bad = value != "zlib" && value != "zstd"
			if value == "zstd" {
				c.Compression = qcow2.Zstd
			}
		case "preallocation":
			bad = value != "off" && value != "metadata"
			preallocate = value == "metadata"
		case "backing_file":
			o.backing = value
		case "backing_fmt":
			o.backingFormat = value
		default:
			c.Size, err = imageSize(value)
			bad = err != nil
		}
		if bad {
			return c, false, mistakef(`-o %s=%s: not a value for it (see "vmm image -help")`, key, value)
		}
	}
	return c, preallocate, nil
}

func (p *process) imageCreate(o *imageOptions, operands []string) (int, error) {
	path := operands[0]
	c, preallocate, err := o.createOptions()
	if err != nil {
		return 0, err
	}
	format := o.format
	if format == "" {
		format = image.Raw
	}
	if format == image.Raw && (o.backing != "" || o.options != "") {
		return 0, mistakef("a raw image has no backing file and no options (use -f qcow2)")
	}
	if len(operands) == 2 {
		if c.Size, err = imageSize(operands[1]); err != nil {
			return 0, mistakef("%s: %w", operands[1], err)
		}
	}
	if o.backing != "" {
		if err := o.lookBehind(path, &c); err != nil {
			return 0, err
		}
	}
	if c.Size == 0 && len(operands) < 2 {
		return 0, mistakef("needs a size (vmm image create -f %s %s 20G)", format, path)
	}
	if err := makeImage(path, format, c, preallocate); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	p.say(o, "Formatting '%s', fmt=%s size=%d%s\n", path, format, c.Size, backingText(c))
	return statusOK, nil
}

func backingText(c qcow2.CreateOptions) string {
	if c.BackingFile == "" {
		return ""
	}
	return fmt.Sprintf(" backing_file=%s backing_fmt=%s", c.BackingFile, c.BackingFormat)
}

// lookBehind opens the backing file, for its format and size.
func (o *imageOptions) lookBehind(path string, c *qcow2.CreateOptions) error {
	full, err := image.BackingPath(path, o.backing)
	if err != nil {
		return err
	}
	back, err := image.Open(full, image.Options{Format: o.backingFormat, ReadOnly: true})
	if err != nil {
		return mistakef("-b %s: %w", o.backing, bare(err))
	}
	defer back.Close()
	c.BackingFile, c.BackingFormat = o.backing, back.Format
	if c.Size == 0 {
		c.Size = back.Disk.Size()
	}
	return nil
}

// makeImage makes an image without contents. What it has begun and not ended it removes, if it was not there before.
func makeImage(path, format string, c qcow2.CreateOptions, preallocate bool) (err error) {
	_, statErr := os.Lstat(path)
	f, err := block.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil && errors.Is(statErr, os.ErrNotExist) {
			_ = os.Remove(path)
		}
	}()
	if format == image.Raw {
		return f.Truncate(c.Size)
	}
	if err := qcow2.Create(f, c); err != nil || !preallocate {
		return err
	}
	q, err := qcow2.Open(f, qcow2.Options{Backing: func(string, string) (qcow2.Backing, error) { return nil, nil }})
	if err != nil {
		return err
	}
	return errors.Join(q.Preallocate(), q.Close())
}

func (p *process) imageConvert(o *imageOptions, operands []string) (int, error) {
	c, preallocate, err := o.createOptions()
	if err != nil {
		return 0, err
	}
	format := o.newFormat
	if format == "" {
		format = image.Raw
	}
	if format == image.Raw && o.options != "" {
		return 0, mistakef("-o %s: a raw image has no options (use -O qcow2)", o.options)
	}
	src, err := o.open(operands[0], true)
	if err != nil {
		return 0, err
	}
	defer src.Close()
	if same(operands[0], operands[1]) {
		return 0, mistakef("%s: is both the old and the new file", operands[1])
	}
	c.Size = src.Disk.Size()
	_, statErr := os.Lstat(operands[1])
	if err := makeImage(operands[1], format, c, preallocate); err != nil {
		return 0, fmt.Errorf("%s: %w", operands[1], err)
	}
	if err := p.copyImage(o, src.Disk, operands[1], format); err != nil {
		if errors.Is(statErr, os.ErrNotExist) {
			_ = os.Remove(operands[1])
		}
		return 0, fmt.Errorf("%s: %w", operands[1], err)
	}
	return statusOK, nil
}

func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func (p *process) copyImage(o *imageOptions, src image.Disk, path, format string) (err error) {
	if src.Size() == 0 {
		return nil
	}
	dst, err := image.Open(path, image.Options{Format: format})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	var progress func(int64)
	if o.progress && !o.quiet {
		line := console.NewProgress(p.stderr)
		defer line.End()
		progress = func(done int64) { line.Show(fmt.Sprintf("%s: %d %%", path, done*100/src.Size())) }
	}
	if err := image.Copy(dst.Disk, src, progress); err != nil {
		return err
	}
	return dst.Disk.Sync()
}

// imageCheckResult is what check prints as JSON, under the names that qemu-img has for it.
type imageCheckResult struct {
	Filename         string `json:"filename"`
	Format           string `json:"format"`
	CheckErrors      int64  `json:"check-errors"`
	Corruptions      int64  `json:"corruptions,omitempty"`
	CorruptionsFixed int64  `json:"corruptions-fixed,omitempty"`
	Leaks            int64  `json:"leaks,omitempty"`
	LeaksFixed       int64  `json:"leaks-fixed,omitempty"`
	ImageEndOffset   int64  `json:"image-end-offset"`
	Total            int64  `json:"total-clusters"`
	Allocated        int64  `json:"allocated-clusters"`
	Fragmented       int64  `json:"fragmented-clusters"`
	Compressed       int64  `json:"compressed-clusters"`
}

func (p *process) imageCheck(o *imageOptions, operands []string) (int, error) {
	repairs, known := map[string]qcow2.Repair{"": {}, "leaks": {Leaks: true}, "all": {Leaks: true, Refcounts: true}}[o.repair]
	if !known {
		return 0, mistakef("-r %s: not leaks or all", o.repair)
	}
	path := operands[0]
	f, err := block.Open(path, block.Options{ReadOnly: o.repair == ""})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	defer f.Close()
	format := o.format
	if format == "" {
		if format, err = image.Probe(f); err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
	if format == image.Raw {
		p.say(o, "%s: a raw image has nothing that could be checked\n", path)
		return statusUncheckable, nil
	}
	r, err := qcow2.CheckFile(f, repairs)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	switch o.output {
	case "", "human":
		p.say(o, "%s", checkText(r, o.repair))
	case "json":
		err = printJSON(p.stdout, &imageCheckResult{
			Filename: path, Format: format, Corruptions: r.Corruptions - r.CorruptionsFixed, CorruptionsFixed: r.CorruptionsFixed,
			Leaks: r.Leaks - r.LeaksFixed, LeaksFixed: r.LeaksFixed, ImageEndOffset: r.EndOffset, Total: r.TotalClusters,
			Allocated: r.AllocatedClusters, Fragmented: r.FragmentedClusters, Compressed: r.CompressedClusters,
		})
	default:
		err = mistakef("-output %s: not human or json", o.output)
	}
	switch {
	case err != nil:
		return 0, err
	case r.Corruptions > r.CorruptionsFixed:
		return statusCorrupt, nil
	case r.Leaks > r.LeaksFixed:
		return statusLeaks, nil
	}
	return statusOK, nil
}

func checkText(r *qcow2.Result, repair string) string {
	var b strings.Builder
	for _, line := range r.Problems {
		fmt.Fprintln(&b, line)
	}
	if r.CorruptionsFixed+r.LeaksFixed > 0 {
		fmt.Fprintf(&b, "Repaired: %d leaked clusters, %d errors\n", r.LeaksFixed, r.CorruptionsFixed)
	}
	leaks, corruptions := r.Leaks-r.LeaksFixed, r.Corruptions-r.CorruptionsFixed
	if corruptions > 0 {
		fmt.Fprintf(&b, "%d errors were found on the image: data may be lost", corruptions)
		if repair == "" {
			b.WriteString(` ("-r all" mends what can be mended)`)
		}
		b.WriteByte('\n')
	}
	if leaks > 0 {
		fmt.Fprintf(&b, "%d leaked clusters were found on the image: this wastes room, and does no harm\n", leaks)
	}
	if leaks+corruptions == 0 {
		fmt.Fprintln(&b, "No errors were found on the image.")
	}
	if r.TotalClusters > 0 {
		percent := func(n, of int64) float64 { return 100 * float64(n) / float64(max(of, 1)) }
		fmt.Fprintf(&b, "%d/%d = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed clusters\n", r.AllocatedClusters, r.TotalClusters,
			percent(r.AllocatedClusters, r.TotalClusters), percent(r.FragmentedClusters, r.AllocatedClusters), percent(r.CompressedClusters, r.AllocatedClusters))
	}
	fmt.Fprintf(&b, "Image end offset: %d\n", r.EndOffset)
	return b.String()
}

func (p *process) imageResize(o *imageOptions, operands []string) (int, error) {
	path, text := operands[0], operands[1]
	size, err := imageSize(strings.TrimLeft(text, "+-"))
	if err != nil {
		return 0, mistakef("%s: %w", text, err)
	}
	i, err := o.open(path, false)
	if err != nil {
		return 0, err
	}
	defer i.Close()
	old := i.Disk.Size()
	switch text[0] {
	case '+':
		size += old
	case '-':
		size = old - size
	}
	switch {
	case size <= 0:
		return 0, mistakef("%s: the disk has %d bytes", text, old)
	case size < old && !o.shrink:
		return 0, mistakef("%s: the disk would become smaller, and what is behind its new end be lost (-shrink if that shall be)", text)
	}
	switch d := i.Disk.(type) {
	case *qcow2.Image:
		err = d.Resize(size)
	case interface{ Truncate(int64) error }:
		err = d.Truncate(size)
	}
	if err = errors.Join(err, i.Close()); err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	p.say(o, "Image resized.\n")
	return statusOK, nil
}
