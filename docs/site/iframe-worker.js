// Copyright the pixloc_ros authors. SPDX-License-Identifier: Apache-2.0
// A browser runs no worker of a page opened from a file system: there the site's search runs in a hidden frame instead.
// (The name is the one that the theme's plugin `offline` looks for; else it would load a script from elsewhere.)
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.scope = frame.contentWindow
      this.scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = frame.contentDocument.createElement("script")
      script.src = new URL(url, location)
      this.ready = new Promise(resolve => script.onload = resolve)
      frame.contentDocument.head.appendChild(script)
    }
    postMessage(data) {
      this.ready.then(() => this.scope.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
