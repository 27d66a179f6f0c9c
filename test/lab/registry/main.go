// Command registry serves the images of an OCI image layout, by their names in it, as a container registry does.
//
//	registry ADDRESS LAYOUT
//
// It prints "serving" when they can be pulled.
package main

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"vmm/container/oci"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: registry ADDRESS LAYOUT")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintf(os.Stderr, "registry: %v\n", err)
		os.Exit(1)
	}
}

func serve(address, dir string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	go func() {
		failed <- http.Serve(l, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	}()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return err
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range manifest.Manifests {
		ref, err := name.ParseReference(address + "/" + d.Annotations[oci.RefName])
		if err != nil {
			return err
		}
		img, err := index.Image(d.Digest)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img); err != nil {
			return err
		}
	}
	fmt.Println("serving")
	return <-failed
}
