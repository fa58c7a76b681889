// Command flux applies a manifest as Flux does, and prints what Flux says it did: "created", "configured" or
// "unchanged".
//
// Standard input holds JSON documents, the API server is that of KUBECONFIG; there is one line of output for each.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/fluxcd/pkg/ssa"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func main() {
	if err := run(json.NewDecoder(os.Stdin)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(input *json.Decoder) error {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(
		clientcmd.NewDefaultClientConfigLoadingRules(), nil).ClientConfig()
	if err != nil {
		return fmt.Errorf("read the kubeconfig: %w", err)
	}
	api, err := client.New(config, client.Options{})
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	manager := ssa.NewResourceManager(api, nil, ssa.Owner{Field: "flux", Group: "kustomize.toolkit.fluxcd.io"})
	for {
		var document json.RawMessage
		if err := input.Decode(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(document); err != nil {
			return fmt.Errorf("read an object: %w", err)
		}
		entry, err := manager.Apply(context.Background(), object, ssa.DefaultApplyOptions())
		if err != nil {
			return fmt.Errorf("apply %s: %w", object.GetName(), err)
		}
		fmt.Println(entry.Action)
	}
}
