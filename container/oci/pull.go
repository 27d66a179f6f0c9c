package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Progress is told how far the transfer of a blob is, in bytes. Several goroutines may tell it.
type Progress func(digest string, done, total int64)

// Pull gets the image from its registry, with what the user's Docker configuration has for that: the layers that are not here
// yet, each compared with its digest. A connection that breaks off is taken up where it broke.
func (s *Store) Pull(ctx context.Context, ref string, progress Progress) (*Image, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	img, err := remote.Image(r, remote.WithContext(ctx), remote.WithPlatform(Platform), remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(&resuming{remote.DefaultTransport, progress}))
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	kept, err := s.keep(ctx, img, r.Name())
	if err != nil {
		return nil, fmt.Errorf("pull %s: %w", ref, err)
	}
	return kept, nil
}

// resuming is a way to registries on which blobs arrive although connections break.
type resuming struct {
	inner    http.RoundTripper
	progress Progress
}

func (t *resuming) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.inner.RoundTrip(req)
	if err != nil || req.Method != http.MethodGet || resp.StatusCode != http.StatusOK || resp.ContentLength <= 0 {
		return resp, err
	}
	// The registry answers itself, or sends us to where the blob is: that is the answer without a manifest's type.
	if strings.Contains(resp.Header.Get("Content-Type"), "manifest") || strings.Contains(resp.Header.Get("Content-Type"), "json") {
		return resp, nil
	}
	digest := ""
	for r := req; r != nil; { // the first request names the blob
		if base := path.Base(r.URL.Path); strings.HasPrefix(base, "sha256:") {
			digest = base
		}
		if r.Response == nil {
			break
		}
		r = r.Response.Request
	}
	resp.Body = &blobBody{t: t, req: req, body: resp.Body, digest: digest, size: resp.ContentLength}
	return resp, nil
}

// maxBreaks is how often a blob may break off without a byte in between.
const maxBreaks = 5

// firstPause is how long to wait before the first try to go on, in doubling steps.
var firstPause = 500 * time.Millisecond

// blobBody is a blob that arrives.
type blobBody struct {
	t          *resuming
	req        *http.Request
	body       io.ReadCloser
	digest     string
	done, size int64
	breaks     int
}

func (b *blobBody) Read(p []byte) (int, error) {
	for {
		n, err := b.body.Read(p)
		b.done += int64(n)
		if n > 0 {
			b.breaks = 0
			if b.t.progress != nil && b.digest != "" {
				b.t.progress(b.digest, b.done, b.size)
			}
		}
		if err == nil || b.done >= b.size {
			return n, err
		}
		if n > 0 { // what broke it is met again
			return n, nil
		}
		if err := b.resume(err); err != nil {
			return 0, err
		}
	}
}

// resume asks for the rest.
func (b *blobBody) resume(cause error) error {
	for {
		if b.breaks++; b.breaks > maxBreaks {
			return cause
		}
		ctx := b.req.Context()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(firstPause << (b.breaks - 1)):
		}
		req := b.req.Clone(ctx)
		req.Header.Set("Range", "bytes="+strconv.FormatInt(b.done, 10)+"-")
		resp, err := b.t.inner.RoundTrip(req)
		if err != nil {
			cause = errors.Join(cause, err)
			continue
		}
		if from := fmt.Sprintf("bytes %d-", b.done); resp.StatusCode != http.StatusPartialContent || !strings.HasPrefix(resp.Header.Get("Content-Range"), from) {
			_ = resp.Body.Close()
			return fmt.Errorf("%w, and the server does not go on where it broke off: %s", cause, resp.Status)
		}
		_ = b.body.Close()
		b.body = resp.Body
		return nil
	}
}

func (b *blobBody) Close() error { return b.body.Close() }
